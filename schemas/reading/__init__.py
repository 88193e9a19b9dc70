"""One reader for behaviour events, from bytes or from a file's row: the same ids, times and names everywhere.

Here: times, ids, envelopes of trackers, records, also in Avro and Protobuf. Not here: files and their formats
(`models/data`), asking a schema registry (`streams/registry`).
"""
