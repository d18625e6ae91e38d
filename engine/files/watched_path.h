// Paths of the inodes that inotify(7) and fanotify(7) watch, of which /proc shows no path.
#pragma once

#include <string>

#include "engine/files/file_kind.h"
#include "engine/proc/fdinfo.h"

namespace stasis::engine {

/// A path that leads to it, if possible one that does in another pod, too; in /proc of a process that has it open
/// when it is deleted. It is looked for among the tree's open files and the folders above them, then by
/// open_by_handle_at(2), then in the folders of that file system. Unimplemented: none was found.
Result<std::string> PathOfWatched(const OpenFile& file, const WatchedInode& watch,
                                  const FileDumpContext& context);

image::FhEntry HandleEntry(const WatchedInode& watch, std::string path);

/// True for a link of /proc that leads to what a process of the tree has open.
bool IsPathOfHeld(const std::string& path);

}  // namespace stasis::engine
