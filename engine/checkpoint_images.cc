// Reads and checks the images of one checkpoint; nothing here trusts them.
//
// Source  criu.org "Images", wire format of CRIU 4.2; <linux/threads.h>, proc(5) nr_open
// Rule    A file that is missing has no records. Names carry pids of the container's own namespace.
// Not here Pages and their maps (memory/), what one kind of file says of itself (files/), filters
//         of seccomp and other attributes of tasks (tasks/)
#include "engine/checkpoint_images.h"

#include <linux/seccomp.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <tuple>
#include <utility>

#include "engine/arch/arch.h"
#include "engine/checkpoint_checks.h"
#include "engine/image/image_file.h"

namespace stasis::engine {
namespace {

using image::CoreEntry;
using image::FileEntry;

constexpr std::uint32_t kPidLimit = 4 << 20;         // PID_MAX_LIMIT, include/linux/threads.h
constexpr std::uint32_t kDescriptorLimit = 1 << 20;  // fs.nr_open as it is by default
constexpr std::size_t kMaxTasks = 1 << 16;           // threads of all processes together
constexpr std::size_t kMaxFiles = 1 << 20;
constexpr std::uint64_t kStdioLimitBytes = 64 << 10;

std::string Text(std::uint64_t number) { return std::to_string(number); }

// A copy lies together, where what is left of `core` has the gaps of what was taken out.
ThreadImage WithoutExtended(pid_t tid, image::CoreEntry core) {
  PackedBytes extended = arch::TakeExtended(core);
  return {.tid = tid, .core = image::CoreEntry(core), .extended = std::move(extended)};
}

/// The one record of a file without which there is no process.
template <typename T>
Result<T> Needed(const ImageSource& source, std::string_view type, std::uint64_t key) {
  const std::string name = ImageName(type, key);
  Result<T> record = ReadOne<T>(source, name, type);
  if (record.status().code() == StatusCode::kNotFound) {
    return DataLoss(name + " is missing: the checkpoint is incomplete");
  }
  return record;
}

template <typename T>
Result<std::vector<T>> ReadUpTo(std::size_t limit, const ImageSource& source, std::string_view type,
                                const std::string& name) {
  std::vector<T> records;
  Result<ImageFileReader> reader = ImageFileReader::Open(source, name, type);
  if (reader.status().code() == StatusCode::kNotFound) return records;
  RETURN_IF_ERROR(reader.status());
  while (!reader->AtEnd()) {
    if (records.size() == limit) {
      return ResourceExhausted(name + " has more than " + Text(limit) + " entries");
    }
    RETURN_IF_ERROR(reader->Record(records.emplace_back()));
  }
  return records;
}

Result<image::InventoryEntry> ReadInventory(const ImageSource& source) {
  const std::string name = ImageName("inventory");
  Result<image::InventoryEntry> inventory =
      ReadOne<image::InventoryEntry>(source, name, "inventory");
  if (inventory.status().code() == StatusCode::kNotFound) {
    return InvalidArgument(name +
                           " is missing: this is no checkpoint, or one that was not finished");
  }
  RETURN_IF_ERROR(inventory.status());
  if (inventory->img_version() != 1 && inventory->img_version() != 2) {
    return Unimplemented(name + ": images of version " + Text(inventory->img_version()));
  }
  if (!inventory->fdinfo_per_id() || !inventory->ns_per_id()) {
    return Unimplemented(name + ": images named by process, as CRIU wrote them before 1.3");
  }
  return inventory;
}

// --- files.img ---

bool HasStateOfItsType(const FileEntry& entry) {
  switch (entry.type()) {
    case image::FD_REG:
      return entry.has_reg();
    case image::FD_PIPE:
      return entry.has_pipe();
    case image::FD_FIFO:
      return entry.has_fifo();
    case image::FD_INETSK:
      return entry.has_isk();
    case image::FD_UNIXSK:
      return entry.has_usk();
    case image::FD_EVENTFD:
      return entry.has_efd();
    case image::FD_EVENTPOLL:
      return entry.has_epfd();
    case image::FD_SIGNALFD:
      return entry.has_sgfd();
    case image::FD_TIMERFD:
      return entry.has_tfd();
    case image::FD_MEMFD:
      return entry.has_memfd();
    case image::FD_TTY:
      return entry.has_tty();
    case image::FD_NETLINKSK:
      return entry.has_nlsk();
    case image::FD_TUNF:
      return entry.has_tunf();
    default:
      return true;  // no kind restores it, so nobody looks
  }
}

auto KeyOf(const FileEntry& entry) { return std::tuple(entry.type(), entry.id()); }

Result<std::vector<FileEntry>> ReadFiles(const ImageSource& source) {
  const std::string name = ImageName("files");
  ASSIGN_OR_RETURN(std::vector<FileEntry> files,
                   ReadUpTo<FileEntry>(kMaxFiles, source, "files", name));
  std::ranges::sort(files, {}, KeyOf);
  if (const auto twice = std::ranges::adjacent_find(files, {}, KeyOf); twice != files.end()) {
    return Broken(name, "file " + Text(twice->id()) + " is there twice");
  }
  for (const FileEntry& entry : files) {
    if (!HasStateOfItsType(entry)) {
      return Broken(name, "file " + Text(entry.id()) + " has no " +
                              image::FdTypes_Name(entry.type()) + " entry");
    }
  }
  return files;
}

// --- The tree ---

class TreeReader {
 public:
  TreeReader(const ImageSource& source, CheckpointImages& images)
      : source_(source), images_(images) {}

  Status Read() {
    const std::string name = ImageName("pstree");
    ASSIGN_OR_RETURN(std::vector<image::PstreeEntry> entries,
                     ReadUpTo<image::PstreeEntry>(kMaxTasks, source_, "pstree", name));
    if (entries.empty()) return DataLoss(name + " has no process: the checkpoint is incomplete");
    for (image::PstreeEntry& entry : entries) {
      ASSIGN_OR_RETURN(ProcessImage process, ReadProcess(name, std::move(entry)));
      images_.processes.push_back(std::move(process));
    }
    return OkStatus();
  }

 private:
  Result<ProcessImage> ReadProcess(const std::string& name, image::PstreeEntry entry) {
    RETURN_IF_ERROR(CheckPlace(name, entry));
    RETURN_IF_ERROR(TakeTid(name, entry.pid()));
    ProcessImage process;
    process.tree = std::move(entry);
    const std::string core_name = ImageName("core", process.tree.pid());
    ASSIGN_OR_RETURN(CoreEntry leader, Needed<CoreEntry>(source_, "core", process.tree.pid()));
    if (!leader.has_tc()) return Broken(core_name, "the core of a process without its state (tc)");
    process.zombie = leader.tc().task_state() == kDead;
    alive_[process.tree.pid()] = !process.zombie;
    process.threads.push_back(WithoutExtended(process.pid(), std::move(leader)));
    if (process.zombie) {
      if (images_.processes.empty()) return Broken(core_name, "the root has ended");
      // CRIU 4.2 writes one number into the list of a zombie that means nothing.
      process.tree.clear_threads();
      process.tree.add_threads(process.tree.pid());
      RETURN_IF_ERROR(CheckArchitecture(core_name, process.leader().core));
      return process;
    }
    RETURN_IF_ERROR(CheckLeader(core_name, process.leader().core));
    RETURN_IF_ERROR(ReadThreads(name, process));
    RETURN_IF_ERROR(ReadIds(process));
    RETURN_IF_ERROR(ReadMemoryMap(process));
    RETURN_IF_ERROR(ReadPlaces(process));
    RETURN_IF_ERROR(ReadDescriptors(process));
    return process;
  }

  Status CheckPlace(const std::string& name, const image::PstreeEntry& entry) const {
    if (entry.pgid() >= kPidLimit || entry.sid() >= kPidLimit) {
      return Broken(name, "pid " + Text(entry.pid()) + " in group " + Text(entry.pgid()) +
                              " of session " + Text(entry.sid()));
    }
    if (images_.processes.empty()) {
      return entry.ppid() == 0 ? OkStatus() : Broken(name, "the first process is not the root");
    }
    const auto parent = alive_.find(entry.ppid());
    if (parent == alive_.end() || !parent->second) {
      return Broken(name, "pid " + Text(entry.pid()) + " is a child of pid " + Text(entry.ppid()) +
                              ", which does not come before it or has ended");
    }
    return OkStatus();
  }

  Status TakeTid(const std::string& name, std::uint32_t tid) {
    if (tid == 0 || tid >= kPidLimit) return Broken(name, "a task with the id " + Text(tid));
    if (!tids_.insert(tid).second) return Broken(name, "task " + Text(tid) + " is there twice");
    if (tids_.size() > kMaxTasks) {
      return ResourceExhausted(name + " has more than " + Text(kMaxTasks) + " tasks");
    }
    return OkStatus();
  }

  Status ReadThreads(const std::string& name, ProcessImage& process) {
    const auto& tids = process.tree.threads();
    if (tids.empty() || tids[0] != process.tree.pid()) {
      return Broken(name, "pid " + Text(process.tree.pid()) + " is not its own first thread");
    }
    for (int i = 1; i < tids.size(); ++i) {
      const std::uint32_t tid = tids[i];
      RETURN_IF_ERROR(TakeTid(name, tid));
      ASSIGN_OR_RETURN(CoreEntry core, Needed<CoreEntry>(source_, "core", tid));
      const std::string core_name = ImageName("core", tid);
      if (core.has_tc()) return Broken(core_name, "a thread with the state of a process (tc)");
      RETURN_IF_ERROR(CheckThread(core_name, core));
      process.threads.push_back(WithoutExtended(static_cast<pid_t>(tid), std::move(core)));
    }
    return OkStatus();
  }

  Status ReadIds(ProcessImage& process) {
    const std::string name = ImageName("ids", process.tree.pid());
    Result<image::TaskKobjIdsEntry> ids =
        Needed<image::TaskKobjIdsEntry>(source_, "ids", process.tree.pid());
    RETURN_IF_ERROR(ids.status());
    process.ids = *std::move(ids);
    const auto shared = [&](std::string_view what) {
      return Unimplemented(name + ": pid " + Text(process.tree.pid()) + " shares its " +
                           std::string(what) + " with another process");
    };
    if (!memories_.insert(process.ids.vm_id()).second) return shared("memory");
    if (!actions_.insert(process.ids.sighand_id()).second) return shared("signal actions");
    return CheckNamespaces(name, process.ids);
  }

  Status CheckNamespaces(const std::string& name, const image::TaskKobjIdsEntry& own) const {
    if (images_.processes.empty()) return OkStatus();
    const auto kinds = [](const image::TaskKobjIdsEntry& ids) {
      return std::tuple(ids.pid_ns_id(), ids.ipc_ns_id(), ids.user_ns_id(), ids.cgroup_ns_id(),
                        ids.time_ns_id());
    };
    if (kinds(own) == kinds(images_.processes.front().ids)) return OkStatus();
    return Unimplemented(name + ": the process is in other namespaces than the root of the tree");
  }

  Status ReadMemoryMap(ProcessImage& process) {
    const std::string name = ImageName("mm", process.tree.pid());
    ASSIGN_OR_RETURN(process.mm, Needed<image::MmEntry>(source_, "mm", process.tree.pid()));
    if (images_.File(image::FD_REG, process.mm.exe_file_id()) == nullptr &&
        images_.File(image::FD_MEMFD, process.mm.exe_file_id()) == nullptr) {
      return Broken(name, "the program is file " + Text(process.mm.exe_file_id()) +
                              ", which files.img does not have");
    }
    return CheckAreas(name, process.mm, images_);
  }

  Status ReadPlaces(ProcessImage& process) {
    const std::string name = ImageName("fs", process.tree.pid());
    ASSIGN_OR_RETURN(process.fs, Needed<image::FsEntry>(source_, "fs", process.tree.pid()));
    for (const std::uint32_t id : {process.fs.cwd_id(), process.fs.root_id()}) {
      if (images_.File(image::FD_REG, id) == nullptr) {
        return Broken(name, "names file " + Text(id) + ", which files.img does not have");
      }
    }
    const std::string root = images_.Path(process.fs.root_id());
    if (root != "/" && images_.processes.empty()) {
      return Unimplemented(name + ": pid " + Text(process.tree.pid()) + " has its root at " + root);
    }
    return OkStatus();
  }

  Status ReadDescriptors(ProcessImage& process) {
    const std::string name = ImageName("fdinfo", process.ids.files_id());
    ASSIGN_OR_RETURN(process.descriptors,
                     ReadUpTo<image::FdinfoEntry>(kDescriptorLimit, source_, "fdinfo", name));
    std::ranges::sort(process.descriptors, {}, &image::FdinfoEntry::fd);
    const image::FdinfoEntry* before = nullptr;
    for (const image::FdinfoEntry& descriptor : process.descriptors) {
      const std::string text = "descriptor " + Text(descriptor.fd());
      if (descriptor.fd() >= kDescriptorLimit) return Broken(name, text + " is no number for one");
      if (before != nullptr && before->fd() == descriptor.fd()) {
        return Broken(name, text + " is there twice");
      }
      if (images_.File(descriptor.type(), descriptor.id()) == nullptr) {
        return Broken(name, text + " is " + image::FdTypes_Name(descriptor.type()) + " " +
                                Text(descriptor.id()) + ", which files.img does not have");
      }
      before = &descriptor;
    }
    return OkStatus();
  }

  const ImageSource& source_;
  CheckpointImages& images_;
  std::set<std::uint32_t> tids_;
  std::map<std::uint32_t, bool> alive_;  // by pid, of the processes read so far
  std::set<std::uint32_t> memories_, actions_;
};

// Where all threads have the same filters, CRIU marks these with SECCOMP_FILTER_FLAG_TSYNC, and only
// the leader names them. Each thread that has none gets those of its leader.
void ShareSyncedFilters(CheckpointImages& images) {
  const auto& filters = images.seccomp.seccomp_filters();
  for (ProcessImage& process : images.processes) {
    if (process.zombie) continue;
    const image::ThreadCoreEntry& leader = process.leader().core.thread_core();
    if (leader.seccomp_mode() != image::SECCOMP_FILTER) continue;
    const std::uint32_t index = leader.seccomp_filter();
    // One that is not there is refused where it is to be installed.
    if (index >= static_cast<std::uint32_t>(filters.size())) continue;
    if ((filters[static_cast<int>(index)].flags() & SECCOMP_FILTER_FLAG_TSYNC) == 0) continue;
    for (ThreadImage& thread : process.threads) {
      image::ThreadCoreEntry& core = *thread.core.mutable_thread_core();
      if (core.seccomp_mode() != image::SECCOMP_DISABLED) continue;
      core.set_seccomp_mode(image::SECCOMP_FILTER);
      core.set_seccomp_filter(index);
    }
  }
}

// An array of the targets of the root's descriptors 0, 1 and 2, written by runc, crun and us.
Result<std::vector<std::string>> ReadStdio(const ImageSource& source) {
  const std::string name = "descriptors.json";
  Result<std::string> text = source.Get(name, kStdioLimitBytes);
  if (text.status().code() == StatusCode::kNotFound) return std::vector<std::string>();
  RETURN_IF_ERROR(text.status());
  const nlohmann::json json = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_array()) return Broken(name, "no array of strings");
  std::vector<std::string> links;
  for (const nlohmann::json& link : json) {
    if (!link.is_string()) return Broken(name, "no array of strings");
    links.push_back(link.get<std::string>());
  }
  return links;
}

}  // namespace

const FileEntry* CheckpointImages::File(image::FdTypes type, std::uint32_t id) const {
  const auto found = std::ranges::lower_bound(files, std::tuple(type, id), {}, KeyOf);
  return found != files.end() && KeyOf(*found) == std::tuple(type, id) ? &*found : nullptr;
}

std::vector<std::uint32_t> CheckpointImages::OtherNamespaces(NamespaceNumber number) const {
  std::set<std::uint32_t> numbers;
  for (const ProcessImage& process : processes) {
    if (!process.zombie) numbers.insert((process.ids.*number)());
  }
  numbers.erase((processes.front().ids.*number)());
  return {numbers.begin(), numbers.end()};
}

bool CheckpointImages::HadOwnMounts() const {
  const std::uint32_t dumper = inventory.root_ids().mnt_ns_id();
  const std::uint32_t tree = processes.front().ids.mnt_ns_id();
  return dumper != 0 && tree != 0 && dumper != tree;
}

std::vector<pid_t> CheckpointImages::TaskIds() const {
  std::vector<pid_t> ids;
  for (const ProcessImage& process : processes) {
    for (const ThreadImage& thread : process.threads) ids.push_back(thread.tid);
  }
  return ids;
}

std::string CheckpointImages::Path(std::uint32_t id) const {
  const FileEntry* entry = File(image::FD_REG, id);
  return entry == nullptr ? "" : entry->reg().name();
}

Result<CheckpointImages> LoadCheckpoint(const ImageSource& source) {
  CheckpointImages images;
  ASSIGN_OR_RETURN(images.inventory, ReadInventory(source));
  ASSIGN_OR_RETURN(images.files, ReadFiles(source));
  RETURN_IF_ERROR(TreeReader(source, images).Read());
  Result<image::SeccompEntry> seccomp =
      ReadOne<image::SeccompEntry>(source, ImageName("seccomp"), "seccomp");
  if (seccomp.status().code() != StatusCode::kNotFound) {
    RETURN_IF_ERROR(seccomp.status());
    images.seccomp = *std::move(seccomp);
    ShareSyncedFilters(images);
  }
  ASSIGN_OR_RETURN(images.stdio, ReadStdio(source));
  return images;
}

}  // namespace stasis::engine
