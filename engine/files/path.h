// Open files that have a path: how the path is checked at dump, and opened again at restore.
#pragma once

#include <cstdint>
#include <string>

#include "engine/files/file_kind.h"

namespace stasis::engine {

/// Where the path of an open file leads by now.
struct PathState {
  std::string path;      ///< Inside the holder's root, without " (deleted)".
  bool reaches = false;  ///< It leads to the open file itself.
};

/// `path` by way of "..data", when it leads through a folder of the kubelet's that has the time as its name;
/// else empty. The kubelet keeps the files of a ConfigMap, Secret or projected volume in such a folder, new with
/// each pod and each change, and a link "..data" to it (k8s.io/kubernetes, pkg/volume/util/atomic_writer.go).
std::string ThroughDataLink(const std::string& path);

/// Looks the path of `file` up in its holder's root. Unimplemented when it has none.
Result<PathState> LookUp(const OpenFile& file, const FileDumpContext& context);

/// The REG message of `file` under `id`, with `path`.
Result<image::RegFileEntry> DumpRegEntry(const OpenFile& file, std::uint32_t id,
                                         const std::string& path, FileDumpContext& context);

/// Opens the path of `reg` as it was open, with the rights and root of the process under restore.
/// FailedPrecondition: there is another type of file by now, or a regular file that is shorter.
Result<UniqueFd> OpenRegEntry(const image::RegFileEntry& reg, FileRestoreContext& context);

/// FailedPrecondition when the open `fd` has another type than `reg` tells, or is shorter than it
/// was.
Status CheckRegEntry(int fd, const image::RegFileEntry& reg);

/// Sets flags and offset of `fd` as `reg` has them.
Status SetRegState(int fd, const image::RegFileEntry& reg);

/// The position of a file of /proc, which SetRegState leaves: once all that it shows is there, by a process that has
/// it as `number`. Rule: lseek(2) makes the text up to there, with the rights of its caller (seq_lseek() in
/// fs/seq_file.c); the next read(2) shows what is left of that.
Status SetMadeUpState(int fd, const image::RegFileEntry& reg, ProcessActor& process, int number);

}  // namespace stasis::engine
