"""A local mirror of the Hugging Face Hub, enough for the real `huggingface_hub` client."""
