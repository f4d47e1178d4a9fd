"""A page to try a trained model: uploads, predictions with their evidence, and the Gradio app."""
