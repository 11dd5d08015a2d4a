"""anyo-ilora-dllm2rec: a search over the distillation of an LLM recommender into a small sequential one."""
