"""Files in object storage, for machines that share no folder: S3 and what speaks like it. Needs the extra ``[s3]``.

Knows keys and objects; not what a file holds.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from streaming_server.errors import FileMissing, StorageUnavailable


class ObjectFiles:
    """Files under one prefix of one bucket; what is read is kept below a folder of this machine."""

    def __init__(self, url: str, cache: Path) -> None:
        """
        Args:
            url: ``s3://bucket`` or ``s3://bucket/prefix``; keys and endpoint come from the places that every program of
                Amazon's library looks at, such as ``AWS_ENDPOINT_URL``.
            cache: where what was read is kept.

        Raises:
            StorageUnavailable: the bucket cannot be reached.
        """
        self._bucket, _, prefix = url.removeprefix("s3://").partition("/")
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._cache = cache
        self._client: Any = boto3.client("s3")
        try:
            self._client.head_bucket(Bucket=self._bucket)
        except (ClientError, BotoCoreError) as error:
            raise StorageUnavailable(f"FILES_URL={url} cannot be used: {error}") from error

    def check(self, key: str) -> None:
        """Every key is inside: there are no links, and no folders."""

    def put(self, key: str, source: Path) -> None:
        self._client.upload_file(str(source), self._bucket, self._prefix + key)
        source.unlink()

    def local(self, key: str) -> Path:
        try:
            head = self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)
        except ClientError:
            raise FileMissing(key.rpartition("/")[2]) from None
        # The tag is part of the name: an object that was replaced is another file, and nobody reads a mixture.
        path = self._cache / str(head["ETag"]).strip('"') / key.rpartition("/")[2]
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{time.monotonic_ns()}.part")
            try:
                self._client.download_file(self._bucket, self._prefix + key, str(partial))
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
        return path

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key)

    def older_than(self, prefix: str, age_s: float) -> list[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=f"{self._prefix}{prefix}/"
        )
        latest_s = time.time() - age_s
        return [
            item["Key"].removeprefix(self._prefix)
            for page in pages
            for item in page.get("Contents", ())
            if item["LastModified"].timestamp() < latest_s
        ]
