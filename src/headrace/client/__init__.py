"""Floor 6: the public Python client of a Headrace gateway.

async with HeadraceClient("http://127.0.0.1:11435", key) as client:
    async for text in client.chat([{"role": "user", "content": "Why is the sky blue?"}], model="smollm2"):
        print(text, end="")
"""

from headrace.client.answer import Answer
from headrace.client.client import DEFAULT_URL, HeadraceClient, Health
from headrace.client.errors import ClientError

__all__ = ["DEFAULT_URL", "Answer", "ClientError", "HeadraceClient", "Health"]
