"""The paper's tables and figures, its values beside ours."""
