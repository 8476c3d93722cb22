"""Models over HTTP, for programs that speak OpenAI's protocol. The only user of Starlette and Uvicorn."""
