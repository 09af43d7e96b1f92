"""The options of IndexTTS 2.0 and 2.5. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field
from pydantic_settings import SettingsConfigDict

from streaming_server.engines.torch.options import ModelDir, TorchOptions, whole_number


class IndexTTS2Options(TorchOptions):
    """Options of IndexTTS 2.0 and 2.5."""

    model_config = SettingsConfigDict(env_prefix="INDEXTTS2_")

    model_dir: ModelDir = Path("checkpoints")
    stream: Annotated[
        Literal["segment", "chunk"],
        Field(
            description="Default streaming mode of IndexTTS 2: `segment` (one solve per segment, exact) or `chunk` "
            "(audio while a segment is still being decoded)"
        ),
    ] = "segment"
    steps: Annotated[
        int,
        Field(
            ge=1,
            le=100,
            description="Flow-matching steps of IndexTTS 2: 25 is the published value, 12 or 8 are faster",
        ),
    ] = 25
    look_ahead: Annotated[
        int,
        Field(
            ge=0,
            le=172,
            description="Look-ahead of the mode `chunk`, in mel frames of 11.6 ms; more frames are closer to `segment` "
            "and increase the latency",
        ),
    ] = 16
    first_chunk: Annotated[
        Literal[17, 34, 69, 138],
        BeforeValidator(whole_number),
        Field(
            description="Size of the first chunk of the mode `chunk`, in mel frames: `17`, `34`, `69` or `138`; the "
            "next ones double, up to 138"
        ),
    ] = 34
    emotion_cap: Annotated[
        bool,
        Field(
            description="`true`: weight the eight values of an emotion vector and limit their sum to 0.8, like the "
            "official web page; `false`: use them unchanged"
        ),
    ] = True
    language: Annotated[
        str,
        Field(
            validation_alias="TTS_LANGUAGE",
            description="Language of all texts (IndexTTS 2.5 only): `auto` (detected by script) or a code such as "
            "`en`, `de`, `yue`",
        ),
    ] = "auto"
    external_models_dir: Annotated[
        Path | None,
        Field(
            description="Folder of the external models of IndexTTS 2 (`w2v-bert-2.0`, `bigvgan`, CAM++ and the "
            "semantic codec of 2.0); empty: `hf_cache` below the model"
        ),
    ] = None
