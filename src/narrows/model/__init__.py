"""The DeepSeek-V4 network. It knows no files, no servers, no scheduling."""
