"""What the check asks of the object store: python store.py make|put|get|uploads BUCKET ..."""

import os
import sys

import boto3


def main():
    # Where the store is, and the keys, say the usual variables.
    store = boto3.client("s3")
    action, bucket, *rest = sys.argv[1:]
    if action == "make":
        store.create_bucket(Bucket=bucket)
    elif action == "put":
        key, path = rest
        store.upload_file(path, bucket, key)
    elif action == "get":
        prefix, folder = rest
        for page in store.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for entry in page.get("Contents", []):
                path = os.path.join(folder, entry["Key"].removeprefix(prefix))
                os.makedirs(os.path.dirname(path), exist_ok=True)
                store.download_file(bucket, entry["Key"], path)
    elif action == "uploads":
        for upload in store.list_multipart_uploads(Bucket=bucket).get("Uploads", []):
            print(f"{upload['Key']} ({upload['UploadId'][:8]})")
    else:
        sys.exit(f"no action is called {action}")


if __name__ == "__main__":
    main()
