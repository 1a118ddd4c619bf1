"""OpenAI's files, uploads and fine-tuning jobs over HTTP, and the worker process that runs the jobs; start from
`jobs_router`."""
