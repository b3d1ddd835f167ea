"""The admin port: health and metrics, and the documents of the registry over HTTP.

app         the routes, and the key in front of them
desk        work on the registry, in threads of its own
problems    refusals as RFC 9457 documents
conditions  If-Match and If-None-Match
answers     what handlers read out of a request and send back
endpoints keys models engines trail build   the handlers, a module for each family
"""
