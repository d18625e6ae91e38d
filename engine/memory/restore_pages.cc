// Source  process_vm_writev(2), proc_pid_mem(5); tested on 6.18
// Rule    Remote writes fault the pages in the process's own memory cgroup: nothing is charged to ours
//         (mem_cgroup_charge() takes the memory's owner, not the caller).
// Rule    The kernel parameter proc_mem.force_override=ptrace (Linux 6.12) lets only the tracing
//         thread write through /proc/PID/mem past a protection: that is never left to a second thread.
// Speed   6.5 GB/s by process_vm_writev and 4.7 by /proc/PID/mem in pieces of 256 KiB and more; both far
//         less for single pages, hence one call for many runs. Into memory that is not there yet most of the
//         time goes into its page faults, 2.3 GB/s a thread; two threads do twice that, as they lock page
//         tables apart from each other (1 GiB: 0.46 s, and 0.24 s).
#include "engine/memory/restore_pages.h"

#include <limits.h>
#include <sys/types.h>
#include <sys/uio.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "engine/image/image_file.h"
#include "engine/image/schema/memory.pb.h"
#include "engine/memory/mapped_image.h"
#include "engine/memory/page_installer.h"
#include "engine/memory/page_runs.h"
#include "engine/tracee/tracee.h"

namespace stasis::engine {
namespace {

// Read and written at a time: long enough to make the calls cheap, short enough to stay in the
// processor's cache between the two. 1 GiB in one area took 0.48 s of processor time with this, 0.54 s with
// 1 MiB and 0.60 s with 4 MiB; most of it are page faults.
constexpr std::uint64_t kBatchBytes = std::uint64_t{256} << 10;
// Below that a second thread is not worth its start.
constexpr std::uint64_t kBytesForTwo = std::uint64_t{8} << 20;

// Of incremental checkpoints on each other. Beyond that it is a folder that is its own parent.
constexpr int kMostParents = 64;
constexpr std::string_view kParentFolder = "parent/";

struct Run {
  AddressRange range;  // empty when there are no pages
  bool in_parent = false;
  bool lazy = false;
};

Result<Run> ReadRun(const image::PagemapEntry& entry) {
  const std::uint64_t pages = entry.has_nr_pages() ? entry.nr_pages() : entry.compat_nr_pages();
  // Before flags existed, what was in the file was present.
  const std::uint32_t flags =
      entry.has_flags() ? entry.flags() : (entry.in_parent() ? kRunInParent : kRunPresent);
  const bool in_parent = (flags & kRunInParent) != 0 || entry.in_parent();
  if (!in_parent && (flags & kRunPresent) == 0 && pages != 0) {
    return Unimplemented("pages that stayed on the source of a lazy migration cannot be restored");
  }
  if (entry.vaddr() % kPageBytes != 0 || entry.vaddr() > kTaskSize ||
      pages > (kTaskSize - entry.vaddr()) / kPageBytes) {
    return DataLoss("impossible pages at " + ToText(AddressRange{entry.vaddr(), entry.vaddr()}));
  }
  return Run{
      {entry.vaddr(), entry.vaddr() + pages * kPageBytes}, in_parent, (flags & kRunLazy) != 0};
}

// Reads one pagemap file, and its parents when it needs them.
class PageSetReader {
 public:
  PageSetReader(const ImageSource& source, int depth) : source_(source), depth_(depth) {}

  Result<PageSet> Read(const std::string& name) {
    name_ = name;
    Result<ImageFileReader> reader = ImageFileReader::Open(source_, name, "pagemap");
    if (reader.status().code() == StatusCode::kNotFound) {
      return DataLoss(name + " is missing: the checkpoint is incomplete");
    }
    RETURN_IF_ERROR(reader.status());
    image::PagemapHead head;
    RETURN_IF_ERROR(reader->Record(head));
    const std::string folder = name.substr(0, name.rfind('/') + 1);
    set_.files.push_back(folder + ImageName("pages", head.pages_id()));
    RETURN_IF_ERROR(Annotate(ReadRuns(*reader), name));
    if (used_bytes_ == 0) return std::move(set_);  // no page was written: there may be no such file
    const std::uint64_t size = source_.Size(set_.files.front()).value_or(0);
    if (size != used_bytes_) {
      return DataLoss(set_.files.front() + " has " + std::to_string(size) + " bytes, and " + name +
                      " needs " + std::to_string(used_bytes_) + ": the checkpoint is incomplete");
    }
    return std::move(set_);
  }

 private:
  Status ReadRuns(ImageFileReader& reader) {
    image::PagemapEntry entry;
    while (!reader.AtEnd()) {
      RETURN_IF_ERROR(reader.Record(entry));
      ASSIGN_OR_RETURN(const Run run, ReadRun(entry));
      if (run.range.empty()) continue;
      if (!set_.runs.empty() && run.range.start < set_.runs.back().end) {
        return DataLoss("pages at " + ToText(run.range) + " come twice or out of order");
      }
      if (run.in_parent) {
        RETURN_IF_ERROR(AddFromParent(run));
        continue;
      }
      set_.Add({.range = run.range, .file = 0, .offset = used_bytes_, .lazy = run.lazy});
      used_bytes_ += run.range.size();
    }
    return OkStatus();
  }

  // Whether they may be lazy is not the parent's to say, whose threads stood elsewhere.
  Status AddFromParent(const Run& run) {
    const AddressRange& range = run.range;
    if (!parent_) {
      if (depth_ == kMostParents) return InvalidArgument("more than 64 checkpoints on each other");
      ASSIGN_OR_RETURN(parent_,
                       PageSetReader(source_, depth_ + 1).Read(std::string(kParentFolder) + name_));
      parent_files_ = set_.files.size();
      set_.files.insert(set_.files.end(), parent_->files.begin(), parent_->files.end());
    }
    std::uint64_t at = range.start;
    auto extent = std::ranges::upper_bound(parent_->extents, range.start, {},
                                           [](const auto& e) { return e.range.end; });
    for (; at < range.end; ++extent) {
      if (extent == parent_->extents.end() || extent->range.start > at) {
        return DataLoss("pages at " + ToText(AddressRange{at, range.end}) +
                        " are not in the parent checkpoint");
      }
      const AddressRange part = {at, std::min(range.end, extent->range.end)};
      set_.Add({.range = part,
                .file = parent_files_ + extent->file,
                .offset = extent->offset + (at - extent->range.start),
                .lazy = run.lazy});
      at = part.end;
    }
    return OkStatus();
  }

  const ImageSource& source_;
  const int depth_;
  std::string name_;
  PageSet set_;
  std::uint64_t used_bytes_ = 0;  // of the first file
  std::optional<PageSet> parent_;
  std::size_t parent_files_ = 0;  // where its files begin among ours
};

// A part of an extent that goes one way to one place.
struct Piece {
  std::uint64_t address = 0;
  std::uint64_t bytes = 0;
  PageTarget::Way way = PageTarget::Way::kCopy;
};

// Gives the pages of a set in pieces, by rising address.
class Pieces {
 public:
  Pieces(const PageSet& set, std::span<const PageTarget> targets)
      : extents_(set.extents), targets_(targets) {}

  bool AtEnd() const { return extents_.empty(); }
  // Where the next piece is. Asked only when not AtEnd(), as Next().
  std::size_t file() const { return extents_.front().file; }
  std::uint64_t offset() const { return extents_.front().offset + done_; }

  // At most `limit` bytes, of a set that passed CheckPlaces.
  Piece Next(std::uint64_t limit) {
    const AddressRange& range = extents_.front().range;
    const std::uint64_t at = range.start + done_;
    while (targets_.front().range.end <= at) targets_ = targets_.subspan(1);
    const PageTarget& target = targets_.front();
    const Piece piece = {.address = target.address + (at - target.range.start),
                         .bytes = std::min({limit, range.end - at, target.range.end - at}),
                         .way = target.way};
    done_ += piece.bytes;
    if (done_ == range.size()) {
      extents_ = extents_.subspan(1);
      done_ = 0;
    }
    return piece;
  }

 private:
  std::span<const PageSet::Extent> extents_;
  std::span<const PageTarget> targets_;
  std::uint64_t done_ = 0;  // bytes of the first extent
};

iovec ToIovec(std::uint64_t address, std::uint64_t bytes) {
  return {reinterpret_cast<void*>(address), bytes};
}

// Writes `bytes` to `places` in turn; as many in one call as the kernel takes.
Status CopyOut(pid_t pid, std::span<const std::byte> bytes, std::span<iovec> places) {
  while (!bytes.empty()) {
    const iovec local = {const_cast<std::byte*>(bytes.data()), bytes.size()};
    const auto count = std::min<std::size_t>(places.size(), IOV_MAX);
    const ssize_t put = ::process_vm_writev(pid, &local, 1, places.data(), count, 0);
    if (put <= 0) {
      const int error = put < 0 ? errno : EFAULT;
      return SyscallError(
          error, "write memory at " +
                     ToText(AddressRange{
                         reinterpret_cast<std::uint64_t>(places[0].iov_base),
                         reinterpret_cast<std::uint64_t>(places[0].iov_base) + places[0].iov_len}));
    }
    auto done = static_cast<std::size_t>(put);
    bytes = bytes.subspan(done);
    while (!places.empty() && done >= places[0].iov_len) {
      done -= places[0].iov_len;
      places = places.subspan(1);
    }
    if (done > 0) {
      places[0] = ToIovec(reinterpret_cast<std::uint64_t>(places[0].iov_base) + done,
                          places[0].iov_len - done);
    }
  }
  return OkStatus();
}

// Puts `bytes` where most of them are not yet.
Status InstallOrCopy(const PageInstaller& installer, pid_t pid, std::uint64_t address,
                     std::span<const std::byte> bytes) {
  while (true) {
    ASSIGN_OR_RETURN(const std::size_t done, installer.Install(address, bytes));
    if (done == bytes.size()) return OkStatus();
    address += done;
    iovec present = ToIovec(address, kPageBytes);
    RETURN_IF_ERROR(CopyOut(pid, bytes.subspan(done, kPageBytes), std::span(&present, 1)));
    address += kPageBytes;
    bytes = bytes.subspan(done + kPageBytes);
  }
}

// Writes the pages of `bytes` that are not so at `address` already.
Status UpdateMemory(int mem_fd, std::uint64_t address, std::span<const std::byte> bytes) {
  std::vector<std::byte> present(bytes.size());
  RETURN_IF_ERROR(ReadMemoryForced(mem_fd, address, present));
  const auto differs = [&](std::size_t at) {
    return std::memcmp(present.data() + at, bytes.data() + at, kPageBytes) != 0;
  };
  for (std::size_t at = 0; at < bytes.size(); at += kPageBytes) {
    std::size_t end = at;
    while (end < bytes.size() && differs(end)) end += kPageBytes;
    if (end == at) continue;
    RETURN_IF_ERROR(WriteMemoryForced(mem_fd, address + at, bytes.subspan(at, end - at)));
    at = end;
  }
  return OkStatus();
}

// Writes `bytes`, the content of `pieces` one after the other. Neighbours that are copied go together.
Status WriteBatch(pid_t pid, int mem_fd, const PageInstaller* installer,
                  std::span<const std::byte> bytes, std::span<const Piece> pieces) {
  std::vector<iovec> places;
  std::size_t waiting = 0;  // bytes of `places`
  const auto copy_waiting = [&]() -> Status {
    const Status status = CopyOut(pid, bytes.first(waiting), places);
    bytes = bytes.subspan(waiting);
    places.clear();
    waiting = 0;
    return status;
  };
  for (const Piece& piece : pieces) {
    if (piece.way == PageTarget::Way::kCopy) {
      places.push_back(ToIovec(piece.address, piece.bytes));
      waiting += piece.bytes;
      continue;
    }
    RETURN_IF_ERROR(copy_waiting());
    if (piece.way == PageTarget::Way::kInstall) {
      RETURN_IF_ERROR(InstallOrCopy(*installer, pid, piece.address, bytes.first(piece.bytes)));
    }
    if (piece.way == PageTarget::Way::kForce) {
      RETURN_IF_ERROR(WriteMemoryForced(mem_fd, piece.address, bytes.first(piece.bytes)));
    }
    if (piece.way == PageTarget::Way::kUpdate) {
      RETURN_IF_ERROR(UpdateMemory(mem_fd, piece.address, bytes.first(piece.bytes)));
    }
    bytes = bytes.subspan(piece.bytes);
  }
  return copy_waiting();
}

// Pieces that follow each other in one file.
struct Batch {
  std::size_t file = 0;
  std::uint64_t offset = 0;
  std::uint64_t size = 0;
  std::vector<Piece> pieces;
};

// By any thread.
bool IsCopied(const Piece& piece) {
  return piece.way == PageTarget::Way::kCopy || piece.way == PageTarget::Way::kInstall;
}

// The next batch of pieces that are all copied, or none of them; empty at the end.
Batch NextBatch(Pieces& pieces) {
  Batch batch;
  while (!pieces.AtEnd() && batch.size < kBatchBytes) {
    if (batch.pieces.empty()) {
      batch.file = pieces.file();
      batch.offset = pieces.offset();
    } else if (pieces.file() != batch.file || pieces.offset() != batch.offset + batch.size) {
      break;
    }
    Pieces ahead = pieces;
    const Piece piece = ahead.Next(kBatchBytes - batch.size);
    if (!batch.pieces.empty() && IsCopied(piece) != IsCopied(batch.pieces.front())) break;
    pieces = ahead;
    batch.pieces.push_back(piece);
    batch.size += piece.bytes;
  }
  return batch;
}

// One process's pages on their way.
class Filling {
 public:
  Filling(const ImageSource& source, const PageSet& set, std::span<const PageTarget> targets,
          pid_t pid, int mem_fd, const PageInstaller* installer)
      : source_(source),
        set_(set),
        targets_(targets),
        pid_(pid),
        mem_fd_(mem_fd),
        installer_(installer) {
    for (const std::string& file : set.files) mapped_.emplace_back(source, file);
  }

  std::uint64_t bytes() const {
    std::uint64_t bytes = 0;
    for (const AddressRange& run : set_.runs) bytes += run.size();
    return bytes;
  }

  // What is copied, by several threads at once; one of them has `on_pages`.
  Status Copy(const std::function<void(std::uint64_t)>& on_pages) {
    std::vector<std::byte> buffer(kBatchBytes);
    for (Batch batch = Take(); batch.size > 0 && !failed_; batch = Take()) {
      if (!IsCopied(batch.pieces.front())) continue;
      const Status status = Write(batch, buffer);
      if (!status.ok()) {
        failed_ = true;
        return status;
      }
      copied_ += batch.size / kPageBytes;
      if (on_pages) on_pages(copied_.exchange(0));
    }
    return OkStatus();
  }

  // The rest, by the tracing thread, when the others are done.
  Status Force(const std::function<void(std::uint64_t)>& on_pages) {
    on_pages(copied_.exchange(0));
    std::vector<std::byte> buffer(kBatchBytes);
    Pieces all(set_, targets_);
    for (Batch batch = NextBatch(all); batch.size > 0; batch = NextBatch(all)) {
      if (IsCopied(batch.pieces.front())) continue;
      RETURN_IF_ERROR(Write(batch, buffer));
      on_pages(batch.size / kPageBytes);
    }
    return OkStatus();
  }

 private:
  Batch Take() {
    const std::lock_guard lock(mutex_);
    return NextBatch(pieces_);
  }

  Status Write(const Batch& batch, std::span<std::byte> buffer) const {
    if (IsCopied(batch.pieces.front())) {
      const std::span mapped = mapped_[batch.file].Get(batch.offset, batch.size);
      if (!mapped.empty()) {
        const Status status = WriteBatch(pid_, mem_fd_, installer_, mapped, batch.pieces);
        mapped_[batch.file].Forget(mapped);
        return status;
      }
    }
    const std::span<std::byte> bytes = buffer.first(batch.size);
    RETURN_IF_ERROR(source_.ReadAt(set_.files[batch.file], batch.offset, bytes));
    return WriteBatch(pid_, mem_fd_, installer_, bytes, batch.pieces);
  }

  const ImageSource& source_;
  const PageSet& set_;
  const std::span<const PageTarget> targets_;
  const pid_t pid_;
  const int mem_fd_;
  const PageInstaller* const installer_;
  std::vector<MappedImage> mapped_;  // the set's files
  std::mutex mutex_;
  Pieces pieces_{set_, targets_};
  std::atomic<std::uint64_t> copied_ = 0;  // pages not reported yet
  std::atomic<bool> failed_ = false;
};

}  // namespace

void PageSet::Add(const Extent& extent) {
  if (!runs.empty() && runs.back().end == extent.range.start) {
    runs.back().end = extent.range.end;
  } else {
    runs.push_back(extent.range);
  }
  if (!extents.empty()) {
    Extent& last = extents.back();
    if (last.range.end == extent.range.start && last.file == extent.file &&
        last.lazy == extent.lazy && last.offset + last.range.size() == extent.offset) {
      last.range.end = extent.range.end;
      return;
    }
  }
  extents.push_back(extent);
}

Result<PageSet> ReadPageSet(const ImageSource& source, const std::string& name) {
  return PageSetReader(source, 0).Read(name);
}

Status CheckPlaces(const PageSet& set, std::span<const PageTarget> targets) {
  auto target = targets.begin();
  for (const AddressRange& run : set.runs) {
    std::uint64_t at = run.start;
    while (at < run.end) {
      while (target != targets.end() && target->range.end <= at) ++target;
      if (target == targets.end() || target->range.start > at) {
        return InvalidArgument("pages at " + ToText(AddressRange{at, run.end}) +
                               " belong to no area that has content of its own");
      }
      at = std::min(run.end, target->range.end);
    }
  }
  return OkStatus();
}

Result<std::vector<std::byte>> ReadPages(const ImageSource& source, const PageSet& set,
                                         const AddressRange& range) {
  std::vector<std::byte> bytes(range.size());
  std::uint64_t at = range.start;
  for (const PageSet::Extent& extent : set.extents) {
    if (extent.range.end <= at) continue;
    if (extent.range.start > at || at == range.end) break;
    const std::uint64_t end = std::min(range.end, extent.range.end);
    RETURN_IF_ERROR(source.ReadAt(set.files[extent.file], extent.offset + (at - extent.range.start),
                                  std::span(bytes).subspan(at - range.start, end - at)));
    at = end;
  }
  if (at != range.end) bytes.clear();
  return bytes;
}

Status WritePages(const ImageSource& source, const PageSet& set,
                  std::span<const PageTarget> targets, pid_t pid, int mem_fd,
                  const std::function<void(std::uint64_t)>& on_pages,
                  const PageInstaller* installer) {
  Filling filling(source, set, targets, pid, mem_fd, installer);
  Status helped;
  {
    std::jthread helper;
    if (filling.bytes() >= kBytesForTwo && std::thread::hardware_concurrency() > 1) {
      helper = std::jthread([&] { helped = filling.Copy({}); });
    }
    RETURN_IF_ERROR(filling.Copy(on_pages));
  }
  RETURN_IF_ERROR(helped);
  return filling.Force(on_pages);
}

}  // namespace stasis::engine
