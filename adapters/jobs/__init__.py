"""Files, fine-tuning jobs and batches of tenants: an SQLite file and a folder that server and workers share.

Start at `JobsDatabase` (database.py); `FileStore`, `UploadStore`, `JobQueue`, `BatchQueue` and `ModelNames` use it.
"""
