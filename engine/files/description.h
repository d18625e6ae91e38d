// What every open file description has, whatever its kind: flags, an owner for its signals.
#pragma once

#include <cstdint>
#include <string>

#include "engine/base/status.h"
#include "engine/base/unique_fd.h"
#include "engine/files/file_kind.h"

namespace stasis::engine {

/// An entry of `type` with the id of `file`; its message is the caller's to fill.
image::FileEntry NewEntry(const OpenFile& file, image::FdTypes type);

/// Whom SIGIO goes to. An owner outside the tree is noted and left out.
Result<image::FownEntry> DumpOwner(const OpenFile& file, FileDumpContext& context);

/// Fills what the messages of all kinds have: id, flags, fown.
template <typename Message>
Status DumpCommon(const OpenFile& file, FileDumpContext& context, Message& message) {
  message.set_id(file.id);
  message.set_flags(file.flags);
  ASSIGN_OR_RETURN(*message.mutable_fown(), DumpOwner(file, context));
  return OkStatus();
}

/// The flags of `saved` that may be given to open(2) again: no creation, no truncation.
int OpenFlags(std::uint32_t saved);

/// Sets those of `saved` that fcntl(2) F_SETFL can change (O_NONBLOCK, O_APPEND, O_ASYNC, …), and
/// clears the others of them.
Status SetStatusFlags(int fd, std::uint32_t saved);

/// A new open file description of what our descriptor `fd` has open, by its link in /proc.
Result<UniqueFd> Reopen(int fd, int flags);

/// Another descriptor for the same open file description.
Result<UniqueFd> Duplicate(int fd);

/// poll(2) without waiting: POLLERR, POLLHUP and those of `events` that hold.
Result<short> PollNow(int fd, short events);

/// A number of an image that names the thing in Kept(): "pipe-12".
std::string KeptKey(std::string_view kind, std::uint64_t number);

/// The text that /proc shows for an object without a name: "pipe:[12]".
std::string ObjectLink(std::string_view kind, std::uint64_t inode);

}  // namespace stasis::engine
