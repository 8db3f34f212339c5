"""The page in the browser, `jdiff studio`. Only `pages` and `app` need Gradio, the extra `studio`."""
