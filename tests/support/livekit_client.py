"""LiveKit's plugins against a server: ``python livekit_client.py PORT`` prints what they received, as JSON.

A program of its own: the libraries take seconds to import, and warn of their own dependencies.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import aiohttp
from livekit.agents import APIConnectOptions
from livekit.plugins import elevenlabs, openai

SENTENCES = "The fog lifted over the bay. Every ship waved back, and then it was quiet."
PATIENT = APIConnectOptions(timeout=180)


async def heard(stream: Any, limit: int | None = None) -> tuple[float, list[Any]]:
    """Seconds of audio, and the timed words."""
    seconds, words = 0.0, []
    async for event in stream:
        frame = event.frame
        seconds += frame.samples_per_channel / frame.sample_rate
        words += [[str(word), word.start_time] for word in frame.userdata.get("lk.timed_transcripts", [])]
        if limit is not None:
            break
    return seconds, words


async def main(port: int) -> dict[str, Any]:
    root = f"http://127.0.0.1:{port}/v1"
    found: dict[str, Any] = {}
    async with aiohttp.ClientSession() as session:
        tts = elevenlabs.TTS(voice_id="voice_01", api_key="secret", base_url=root, http_session=session)
        found["voices"] = [voice.id for voice in await tts.list_voices()]
        found["whole_s"], _ = await heard(tts.synthesize("Hello from LiveKit.", conn_options=PATIENT))

        stream = tts.stream(conn_options=PATIENT)
        for word in SENTENCES.split():
            stream.push_text(word + " ")
        stream.end_input()
        found["stream_s"], found["words"] = await heard(stream)
        await stream.aclose()

        stream = tts.stream(conn_options=PATIENT)
        stream.push_text("This turn is interrupted. Nobody hears the rest of it. ")
        await heard(stream, 1)
        await stream.aclose()

        stream = tts.stream(conn_options=PATIENT)
        stream.push_text("The next turn.")
        stream.end_input()
        found["next_s"], _ = await heard(stream)
        await stream.aclose()
        await tts.aclose()

        for model in ("tts-1", "gpt-4o-mini-tts"):
            other = openai.TTS(model=model, voice="alloy", api_key="secret", base_url=root)
            found[model], _ = await heard(other.synthesize("Hello from LiveKit.", conn_options=PATIENT))
            await other.aclose()
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(int(sys.argv[1])))))
