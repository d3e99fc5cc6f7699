"""A pipeline that trains a GPT on a person's own text: tokenize → split → train → evaluate → export."""
