"""Index a folder of photos, and print the photos nearest to one of them.

python examples/search_folder.py [FOLDER] [QUERY] [INDEX] [MODEL]

Run it again: only what is new or changed in the folder is opened.
"""

import sys

from dinov2kit.indexes import Index, index_photos


def main(
    folder: str = "examples/photos",
    query: str = "examples/photos/chelsea.jpg",
    directory: str = ".demo/search_folder",
    model: str = "untrained:vitt14",
) -> None:
    run = index_photos(directory, [folder], model=model)
    print(f"{run.report.new} new, {run.report.unchanged} unchanged, {run.items} photos in {run.directory}")
    with Index.open(directory) as index:
        for hit in index.search(query, k=5):
            print(f"{hit.score:.3f}\t{hit.path}")


if __name__ == "__main__":
    main(*sys.argv[1:])
