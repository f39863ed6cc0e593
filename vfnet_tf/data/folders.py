"""Lists and finds files: hidden ones, links, pipes and composed names are known."""

import contextlib
import os
import stat
import unicodedata

# Files that systems and archives leave beside the data, in lower case.
_OF_SYSTEMS = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
_OF_SYSTEMS |= {"@eadir", "$recycle.bin", "system volume information"}
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_SAMPLE = 100


def is_hidden(name):
    """Whether the name of a file or folder, without a folder, is that of no user data.

    These are dot files (macOS leaves `._a.jpg` on foreign disks and in archives),
    `__MACOSX`, `Thumbs.db` and the like.
    """
    return name.startswith(".") or name.lower() in _OF_SYSTEMS


def regular_file_error(path):
    """Why a path is no regular file. Ask before opening: a pipe waits for a writer.

    Returns:
        str, such as "does not exist" or "is no regular file, but a pipe"; empty for a
        regular file and for a link to one.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        is_link = os.path.islink(path)
        return f"does not exist{', it is a link to nothing' if is_link else ''}"
    except OSError as error:  # such as a loop of links
        return f"cannot be opened: {error.strerror}"
    except ValueError as error:  # a zero byte in the name
        return f"cannot be opened: {error}"
    if stat.S_ISREG(mode):
        return ""
    kind = next((kind for is_kind, kind in _KINDS if is_kind(mode)), "something else")
    return f"is no regular file, but {kind}"


def list_folder(folder, suffixes):
    """The regular files of one folder, without hidden ones, by their endings.

    Args:
        folder: `Path`; it may be absent.
        suffixes: set of str in lower case, such as `{".csv"}`; case does not count.

    Returns:
        list of `Path`, sorted by name.
    """
    return _listed(
        folder,
        lambda entry: (
            os.path.splitext(entry.name)[1].lower() in suffixes and entry.is_file()
        ),
    )


def list_folders(folder):
    """The folders in a folder, without hidden ones.

    Args:
        folder: `Path`; it may be absent.

    Returns:
        dict name -> `Path`, sorted by name.
    """
    return {path.name: path for path in _listed(folder, os.DirEntry.is_dir)}


def _listed(folder, is_wanted):
    names = []
    # A loop of links, or a folder without permission, has no entries.
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if not is_hidden(entry.name) and is_wanted(entry):
                    names.append(entry.name)
    return [folder / name for name in sorted(names)]


def list_tree(folder, passed_over=None, is_deep=True):
    """All files in a folder and in the folders in it, without hidden ones.

    Links to folders are followed, except to a folder that `folder` lies in. Each folder is
    read once, so that loops of links end, and under its own name rather than a link's.

    Args:
        folder: str or path.
        passed_over: list to which `(path, reason)` is appended for all that is left out
            or no regular file; None makes an unreadable folder an error.
        is_deep: bool, whether to look into the folders in it.

    Returns:
        list of str, sorted; pipes and dead links are among them.

    Raises:
        OSError: for a folder that cannot be read, without `passed_over`.
    """
    files, links, seen = [], [], set()
    folders = [os.fspath(folder)]
    start = os.path.join(os.path.realpath(folder), "")
    left_out = [] if passed_over is None else passed_over
    while folders or links:
        is_link = not folders
        place = links.pop(0) if is_link else folders.pop()
        try:
            status = os.stat(place)
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            if passed_over is None:
                raise
            left_out.append((place, f"cannot be read: {error.strerror}"))
            continue
        identity = (status.st_dev, status.st_ino)
        target = os.path.join(os.path.realpath(place), "")
        if identity in seen or (is_link and start.startswith(target)):
            left_out.append((place, "is a link to a folder that is read already"))
            continue
        seen.add(identity)
        for entry in entries:
            if is_hidden(entry.name):
                left_out.append((entry.path, "is hidden or of the system"))
                continue
            is_symlink = entry.is_symlink()
            # `entry.is_dir()` raises for a link to itself.
            is_folder = os.path.isdir(entry.path) if is_symlink else entry.is_dir()
            if is_folder and is_deep:
                (links if is_symlink else folders).append(entry.path)
            elif not is_folder:
                files.append(entry.path)
                if is_symlink or not entry.is_file():
                    error = regular_file_error(entry.path)
                    left_out += [(entry.path, error)] if error else []
    return sorted(files)


def find_file(folder, name):
    """The path of a named file, whether its name on disk is in NFC or NFD.

    macOS writes `u` and two dots (NFD) where other systems write `ü` (NFC).

    Args:
        folder: str or path.
        name: str, relative to it; the folders in it are found in either form too.

    Returns:
        str; where there is no such file in either form, the path with the name as it is.
    """
    path = os.path.join(folder, name)
    if name.isascii() or os.path.lexists(path):
        return path
    if os.path.isabs(name):
        folder, name = os.sep, name.lstrip(os.sep)
    found = folder
    for part in name.split(os.sep):
        forms = [part, *(unicodedata.normalize(form, part) for form in ("NFC", "NFD"))]
        places = [os.path.join(found, form) for form in forms]
        found = next((place for place in places if os.path.lexists(place)), None)
        if found is None:
            return path
    return found


def best_folder(folders, names):
    """The folder that most of the named files are in.

    Args:
        folders: list of str or paths.
        names: list of str, relative to the folder that is looked for.

    Returns:
        One of `folders`, the first of equals; None if no file is in any of them.
    """
    best = None
    # A sample decides if most of its files are found.
    for part in (names[:: max(1, len(names) // _SAMPLE)], names):
        most, best = 0, None
        for folder in folders:
            hits = sum(os.path.lexists(find_file(folder, name)) for name in part)
            if hits > most:
                most, best = hits, folder
            if most == len(part):
                break
        if 2 * most >= len(part):
            break
    return best
