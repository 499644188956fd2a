"""The same API for asyncio: no thread a wait, and a cancelled wait leaves nothing behind."""
