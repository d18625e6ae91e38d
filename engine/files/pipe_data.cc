#include "engine/files/pipe_data.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>

#include "engine/base/io.h"
#include "engine/files/description.h"

namespace stasis::engine {
namespace {

bool SameInode(const OpenFile& a, const OpenFile& b) {
  return a.st.st_ino == b.st.st_ino && a.st.st_dev == b.st.st_dev;
}

Result<std::size_t> BytesWaiting(const OpenFile& file) {
  int bytes = 0;
  if (::ioctl(file.borrowed.get(), FIONREAD, &bytes) != 0) {
    return SyscallError(errno, "FIONREAD " + NameOf(file));
  }
  return static_cast<std::size_t>(bytes);
}

// A pipe of ours with the same content, at its end: tee(2) duplicates references to the buffers, from the oldest on, without taking anything out. It
// stops when the target has no free slot, so ours gets as many as the source has.
Result<UniqueFd> Copy(const OpenFile& file, std::size_t length, int size) {
  UniqueFd again;
  int source = file.borrowed.get();
  if ((file.flags & O_ACCMODE) == O_WRONLY) {
    ASSIGN_OR_RETURN(again, Reopen(source, O_RDONLY | O_NONBLOCK));
    source = again.get();
  }
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) {
    return SyscallError(errno, "pipe");
  }
  UniqueFd reader(ends[0]);
  UniqueFd writer(ends[1]);
  // Above /proc/sys/fs/pipe-max-size only CAP_SYS_RESOURCE may: then what fits must do.
  (void)::fcntl(writer.get(), F_SETPIPE_SZ, size);
  const ssize_t copied = ::tee(source, writer.get(), INT_MAX, SPLICE_F_NONBLOCK);
  if (copied < 0) {
    return SyscallError(errno, "tee " + NameOf(file));
  }
  if (static_cast<std::size_t>(copied) != length) {
    return Unimplemented(NameOf(file) + ": only " + std::to_string(copied) + " of " +
                         std::to_string(length) +
                         " bytes in this pipe can be copied; raise "
                         "/proc/sys/fs/pipe-max-size to " +
                         std::to_string(size));
  }
  writer.Reset();
  return reader;
}

// What each read(2) gives that has room for all: everything, or one packet of a pipe with borders (O_DIRECT).
Result<std::vector<std::string>> ReadParts(int reader, std::size_t length) {
  std::vector<std::string> parts;
  std::string part(length, '\0');
  while (true) {
    const ssize_t got = ::read(reader, part.data(), part.size());
    if (got == 0) return parts;
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      return SyscallError(errno, "read a copy of a pipe");
    }
    parts.emplace_back(part, 0, static_cast<std::size_t>(got));
  }
}

struct PipeRecord {
  image::PipeDataEntry entry;
  std::string_view bytes;
};
using PipeRecords = std::vector<PipeRecord>;

Result<PipeRecords> RecordsOf(std::uint32_t inode, std::string_view image_name,
                              FileRestoreContext& context) {
  using Record = FileRestoreContext::Record;
  ASSIGN_OR_RETURN(const std::span<const Record> records, context.Records(image_name));
  PipeRecords found;
  for (const Record& record : records) {
    image::PipeDataEntry entry;
    if (!entry.ParsePartialFromString(record.message) || !entry.IsInitialized()) {
      return DataLoss(std::string(image_name) + ": a record does not parse");
    }
    if (entry.pipe_id() == inode) found.push_back({std::move(entry), record.bytes});
  }
  return found;
}

}  // namespace

bool IsFirstOfItsInode(const OpenFile& file, const FileDumpContext& context) {
  const auto first = std::ranges::find_if(
      context.files(), [&](const OpenFile& other) { return SameInode(file, other); });
  return first == context.files().end() || first->id == file.id;
}

PipeEnds EndsInTree(const OpenFile& file, const FileDumpContext& context) {
  PipeEnds ends;
  for (const OpenFile& other : context.files()) {
    if (!SameInode(file, other)) continue;
    const std::uint32_t access = other.flags & O_ACCMODE;
    ends.reader |= access != O_WRONLY;
    ends.writer |= access != O_RDONLY;
    ends.external |= context.IsExternalStdio(other);
  }
  return ends;
}

Status DumpPipeData(const OpenFile& file, std::string_view image_name, FileDumpContext& context) {
  if (!IsFirstOfItsInode(file, context)) return OkStatus();
  const int size = ::fcntl(file.borrowed.get(), F_GETPIPE_SZ);
  if (size < 0) {
    return SyscallError(errno, "F_GETPIPE_SZ " + NameOf(file));
  }
  ASSIGN_OR_RETURN(const std::size_t length, BytesWaiting(file));
  std::vector<std::string> parts(1);
  if (length > 0) {
    ASSIGN_OR_RETURN(const UniqueFd copy, Copy(file, length, size));
    ASSIGN_OR_RETURN(parts, ReadParts(copy.get(), length));
  }
  for (std::string& part : parts) {
    image::PipeDataEntry record;
    record.set_pipe_id(static_cast<std::uint32_t>(file.st.st_ino));
    record.set_bytes(static_cast<std::uint32_t>(part.size()));
    record.set_size(static_cast<std::uint32_t>(size));
    context.AddRecord(image_name, record.SerializeAsString(), std::move(part));
  }
  return OkStatus();
}

Result<bool> HasPipeData(std::uint32_t inode, std::string_view image_name,
                         FileRestoreContext& context) {
  ASSIGN_OR_RETURN(const PipeRecords records, RecordsOf(inode, image_name, context));
  return std::ranges::any_of(records,
                             [](const PipeRecord& record) { return !record.bytes.empty(); });
}

Status RestorePipeData(int fd, std::uint32_t inode, std::string_view image_name,
                       FileRestoreContext& context) {
  ASSIGN_OR_RETURN(const PipeRecords records, RecordsOf(inode, image_name, context));
  // Several are packets. The end that is given to the program gets its own flags.
  if (records.size() > 1) RETURN_IF_ERROR(SetStatusFlags(fd, O_NONBLOCK | O_DIRECT));
  for (const PipeRecord& record : records) {
    // The limits on pipes hold for us as for anybody; a smaller buffer is fine when the data fit.
    if (record.entry.size() > 0 && record.entry.size() <= INT_MAX) {
      (void)::fcntl(fd, F_SETPIPE_SZ, static_cast<int>(record.entry.size()));
    }
    if (record.bytes.empty()) continue;
    const ssize_t put = ::write(fd, record.bytes.data(), record.bytes.size());
    if (put < 0 && errno != EAGAIN) {
      return SyscallError(errno, "write into the pipe");
    }
    if (put != static_cast<ssize_t>(record.bytes.size())) {
      return ResourceExhausted("the " + std::to_string(record.bytes.size()) +
                               " bytes of a pipe do not fit into one here; raise "
                               "/proc/sys/fs/pipe-max-size");
    }
  }
  return OkStatus();
}

}  // namespace stasis::engine
