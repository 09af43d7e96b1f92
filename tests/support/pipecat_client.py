"""pipecat's services against a server: ``python pipecat_client.py PORT`` prints what they received, as JSON.

A program of its own: pipecat takes seconds to import, and its dependencies are in a folder of their own, see
`run_tests.sh`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import aiohttp
from pipecat.frames.frames import Frame, InterruptionFrame, TTSAudioRawFrame, TTSSpeakFrame, TTSTextFrame
from pipecat.services.elevenlabs.tts import ElevenLabsHttpTTSService, ElevenLabsTTSService
from pipecat.services.openai.tts import OpenAITTSService
from pipecat.services.tts_service import TTSService
from pipecat.tests.utils import SleepFrame, run_test

HELLO = "Hello from pipecat."
NEXT = "Every ship waved back."


async def heard(service: TTSService, *frames: Frame) -> dict[str, Any]:
    """Seconds of audio and the words, each with its time if it has one."""
    received, _ = await run_test(service, frames_to_send=frames, start_timeout=180)
    audio = [frame for frame in received if isinstance(frame, TTSAudioRawFrame)]
    words = [frame for frame in received if isinstance(frame, TTSTextFrame)]
    return {
        "seconds": sum(len(frame.audio) / 2 / frame.sample_rate for frame in audio),
        "words": [frame.text for frame in words],
        "times": [frame.pts for frame in words],
    }


async def main(port: int) -> dict[str, Any]:
    root = f"http://127.0.0.1:{port}"
    texts = TTSSpeakFrame(HELLO), TTSSpeakFrame(NEXT)
    openai = OpenAITTSService(
        api_key="secret",
        base_url=f"{root}/v1",
        settings=OpenAITTSService.Settings(voice="alloy", model="gpt-4o-mini-tts"),
    )
    realtime, interrupted = (
        ElevenLabsTTSService(
            api_key="secret",
            url=f"ws://127.0.0.1:{port}",
            settings=ElevenLabsTTSService.Settings(voice="voice_01", model="eleven_flash_v2_5"),
        )
        for _ in range(2)
    )
    found = {
        "openai": await heard(openai, *texts),
        "realtime": await heard(realtime, *texts),
        "interrupted": await heard(
            interrupted, TTSSpeakFrame("A long turn. " * 200), SleepFrame(), InterruptionFrame(), TTSSpeakFrame(NEXT)
        ),
    }
    async with aiohttp.ClientSession() as session:
        http = ElevenLabsHttpTTSService(
            api_key="secret",
            aiohttp_session=session,
            base_url=root,
            settings=ElevenLabsHttpTTSService.Settings(voice="voice_01", model="eleven_flash_v2_5"),
        )
        found["http"] = await heard(http, *texts)
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(int(sys.argv[1])))))
