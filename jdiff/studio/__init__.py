"""The page in the browser, `jdiff studio`. Only `app`, `canvas`, `flow` and `pages` need Gradio, the extra `studio`."""
