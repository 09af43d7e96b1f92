"""Files in S3 object storage, for machines without a shared folder. Requires the extra ``[s3]``."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from streaming_server.errors import FileMissing, StorageUnavailable
from streaming_server.jobs.file_store import storage_errors

_CONFIG = Config(connect_timeout=5, read_timeout=30, retries={"mode": "standard", "max_attempts": 3})
_MISSING = {"404", "NoSuchKey", "NotFound"}
_STAGED, _STAGED_S = "staged", 24 * 3600.0
"""Prefix of content that is not under its key yet, and the age at which it is taken for a dead process's."""
_CACHE_S = 3600.0
"""A local copy is removed after this time without use; processes that have it open continue to read it."""


class ObjectFiles:
    """Files below a prefix of a bucket, with a local cache of the files read."""

    def __init__(self, url: str, cache: Path) -> None:
        """
        Args:
            url: ``s3://bucket`` or ``s3://bucket/prefix``; credentials and endpoint come from boto3's usual sources,
                such as ``AWS_ENDPOINT_URL``.
            cache: folder of the local copies.

        Raises:
            StorageUnavailable: the bucket cannot be reached.
        """
        self._bucket, _, prefix = url.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._cache = cache
        try:
            self._client: Any = boto3.client("s3", config=_CONFIG)
            self._client.head_bucket(Bucket=self._bucket)
        except (ClientError, BotoCoreError, ValueError) as error:  # the last for an endpoint that is not a URL
            raise StorageUnavailable(f"FILES_URL={url} cannot be used: {error}") from error

    def check(self, key: str) -> None:
        """Every key is valid: there are no links or folders."""

    @contextmanager
    def staged(self, key: str, source: Path) -> Iterator[Callable[[], None]]:
        staged = {"Bucket": self._bucket, "Key": f"{self._prefix}{_STAGED}/{secrets.token_hex(16)}"}
        with _translate_errors(key):
            self._client.upload_file(str(source), staged["Bucket"], staged["Key"])

        def put() -> None:
            with _translate_errors(key):
                self._client.copy_object(CopySource=staged, Bucket=self._bucket, Key=self._prefix + key)

        try:
            yield put
        finally:
            with suppress(ClientError, BotoCoreError):  # then `tidy` removes it
                self._client.delete_object(**staged)

    def local(self, key: str) -> Path:
        name = {"Bucket": self._bucket, "Key": self._prefix + key}
        with _translate_errors(key):
            path = self._copy_of(key, self._client.head_object(**name))
            if not path.is_file():
                answer = self._client.get_object(**name)
                path = self._copy_of(key, answer)  # the object may have been replaced in between
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_name(f".{secrets.token_hex(8)}.part")
                try:
                    with storage_errors(), partial.open("xb") as copy:
                        shutil.copyfileobj(answer["Body"], copy)
                    partial.replace(path)
                finally:
                    partial.unlink(missing_ok=True)
        os.utime(path)
        return path

    def touch(self, path: Path) -> None:
        with suppress(OSError):
            os.utime(path)

    def delete(self, key: str) -> None:
        with _translate_errors(key):
            self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key)

    def older_than(self, prefix: str, age_s: float) -> list[str]:
        latest_s = time.time() - age_s
        with _translate_errors(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=f"{self._prefix}{prefix}/", Delimiter="/"
            )
            return [
                item["Key"].removeprefix(self._prefix)
                for page in pages
                for item in page.get("Contents", ())
                if item["LastModified"].timestamp() < latest_s
            ]

    def tidy(self) -> None:
        for key in self.older_than(_STAGED, _STAGED_S):
            self.delete(key)
        latest_s = time.time() - _CACHE_S
        for path in self._cache.glob("*/*"):
            with suppress(OSError):  # removed by another process, or replaced by a new copy
                if path.stat().st_mtime < latest_s:
                    path.unlink()
                    path.parent.rmdir()

    def _copy_of(self, key: str, answer: Mapping[str, Any]) -> Path:
        # The ETag is part of the name, so that a replaced object is a new file and no reader gets a mixture of two.
        return self._cache / str(answer["ETag"]).strip('"') / key.rpartition("/")[2]


@contextmanager
def _translate_errors(key: str) -> Iterator[None]:
    try:
        yield
    except (ClientError, BotoCoreError, Boto3Error) as error:
        if isinstance(error, ClientError) and error.response["Error"]["Code"] in _MISSING:
            raise FileMissing(key.rpartition("/")[2]) from None
        raise StorageUnavailable(f"object storage unavailable: {type(error).__name__}") from error
