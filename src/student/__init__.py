"""The small, fast sequential recommenders: models, objectives, training without a teacher, evaluation."""
