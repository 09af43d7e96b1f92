"""The Model Context Protocol: tools with which a language model speaks, over HTTP and over standard input."""
