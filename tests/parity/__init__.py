"""The proof that this network is DeepSeek-V4: equality with transformers' `deepseek_v4`, and for MTP with the spec."""
