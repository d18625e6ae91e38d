// The order of a dump. What is refused is refused before anything of ours runs in the tree; the
// tree runs on as soon as its memory is read; the inventory, without which there is no checkpoint,
// comes last.
#include "engine/dump.h"

#include <fcntl.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <cerrno>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <thread>
#include <utility>

#include "engine/base/io.h"
#include "engine/dump_ahead.h"
#include "engine/dump_files.h"
#include "engine/dump_segments.h"
#include "engine/dump_sink.h"
#include "engine/dump_watch.h"
#include "engine/files/io_uring.h"
#include "engine/files/memfd.h"
#include "engine/files/message_queue.h"
#include "engine/files/pseudo_terminal.h"
#include "engine/held_sink.h"
#include "engine/image/image_file.h"
#include "engine/image/schema/inventory.pb.h"
#include "engine/memory/aio_ring.h"
#include "engine/memory/dump_memory.h"
#include "engine/pre_copy.h"
#include "engine/proc/text.h"
#include "engine/tasks/affinity.h"
#include "engine/tasks/cgroups.h"
#include "engine/tasks/dump_beside.h"
#include "engine/tasks/dump_inside.h"
#include "engine/tasks/dump_outside.h"
#include "engine/tasks/dump_seccomp.h"
#include "engine/tasks/dump_tree.h"
#include "engine/tasks/in_vdso.h"
#include "engine/tasks/kernel_tasks.h"
#include "engine/tasks/security_label.h"
#include "engine/tracee/frozen_tree.h"

namespace stasis::engine {
namespace {

using std::chrono::steady_clock;

std::chrono::microseconds Since(steady_clock::time_point start) {
  return std::chrono::duration_cast<std::chrono::microseconds>(steady_clock::now() - start);
}

std::string Milliseconds(std::chrono::microseconds time) {
  return std::to_string(time.count() / 1000) + "." + std::to_string(time.count() % 1000 / 100) +
         " ms";
}

// All that is known of the tree under dump.
struct Checkpoint {
  const DumpRequest& request;
  FrozenTree& tree;
  DumpReport& report;
  PreCopy& pre_copy;
  KernelTasks* kernel_tasks;  // may be null
  NamespaceDumper namespaces;
  std::unique_ptr<FileDumper> files;
  CgroupDumper cgroups;
  SeccompDumper seccomp = {};
  MemoryDumper memory{request, report};
  std::vector<DumpedProcess> processes = {};
  UtsNames uts_names = {};
  ImageFileBuilder segments{"ipcns-shm"};
  std::string run_id = {};

  bool LocksWholeNetwork() const {
    return request.fate == Fate::kKill && request.options.lock_network && namespaces.has_own_net();
  }

  // Calls `step` for each living process, and asks in between whether the dump is still wanted.
  Status ForEach(const std::function<Status(DumpedProcess&)>& step) {
    for (DumpedProcess& process : processes) {
      if (process.zombie) continue;
      RETURN_IF_ERROR(StillWanted(request));
      RETURN_IF_ERROR(Annotate(step(process), Name(*process.frozen)));
    }
    return OkStatus();
  }
};

Status ReadTasks(Checkpoint& checkpoint, BesideLook& beside) {
  for (FrozenProcess& process : checkpoint.tree.processes()) {
    checkpoint.request.log.Debug(Name(process) + ", " + std::to_string(process.threads.size()) +
                                 " threads");
    Result<DumpedProcess> dumped = ReadOutside(process);
    if (!dumped.ok()) return Annotate(dumped.status(), Name(process));
    checkpoint.processes.push_back(*std::move(dumped));
    ++checkpoint.report.processes;
    checkpoint.report.threads += process.threads.size();
  }
  RETURN_IF_ERROR(beside.TakeProcesses(checkpoint.processes));
  RETURN_IF_ERROR(checkpoint.namespaces.FindOthers(checkpoint.tree.processes()));
  NumberTasks(checkpoint.processes, checkpoint.namespaces);
  RETURN_IF_ERROR(CheckForks(checkpoint.processes));
  return checkpoint.namespaces.Read(checkpoint.tree.processes(), checkpoint.request.compare_mounts,
                                    checkpoint.request.outside_mounts,
                                    checkpoint.request.options.own_namespaces);
}

Status TryNetworks(Checkpoint& checkpoint) {
  RETURN_IF_ERROR(checkpoint.namespaces.TryNetworks());
  std::ranges::move(checkpoint.namespaces.NeedsOfNetworks(),
                    std::back_inserter(checkpoint.report.notes));
  return OkStatus();
}

Status ReadAioRings(DumpedProcess& process, DumpReport& report) {
  bool any = false;
  for (const Area& area : process.areas) {
    if (!area.Is(kAreaAioRing)) continue;
    ASSIGN_OR_RETURN(const UniqueFd mem, OpenAt(process.frozen->proc.get(), "mem", O_RDONLY));
    ASSIGN_OR_RETURN(*process.mm.add_aios(),
                     ReadAioRing(mem.get(), area.vma.start, area.vma.size()));
    any = true;
  }
  if (any) {
    report.notes.push_back(
        Name(*process.frozen) +
        ": asynchronous I/O (io_submit) stood still when it was looked at; a request "
        "that had not ended by then never will");
  }
  return OkStatus();
}

// Anonymous shared memory that is more than that: open as a file (/proc/PID/map_files), or mapped privately.
std::set<std::uint64_t> ZeroFiles(const Checkpoint& checkpoint) {
  std::set<std::uint64_t> inodes;
  for (const OpenFile& file : checkpoint.files->files()) {
    if (IsZeroFile(file.link)) inodes.insert(file.st.st_ino);
  }
  for (const DumpedProcess& process : checkpoint.processes) {
    for (const Area& area : process.areas) {
      if (area.Is(kAreaFilePrivate) && IsZeroFile(area.vma.path)) inodes.insert(area.vma.inode);
    }
  }
  return inodes;
}

// Descriptors, and the files that executable, directories and mappings name.
Status ReadFiles(Checkpoint& checkpoint) {
  FileDumper& files = *checkpoint.files;
  RETURN_IF_ERROR(files.SetNamespaces(checkpoint.namespaces));
  RETURN_IF_ERROR(files.Collect(TableIds(checkpoint.processes)));
  for (const OpenFile& file : files.files()) checkpoint.request.log.Debug(NameOf(file));
  RETURN_IF_ERROR(files.DumpAll());
  RETURN_IF_ERROR(files.DumpAutofs());
  checkpoint.namespaces.GiveTerminals([&](dev_t device, std::uint32_t index) {
    return MasterOf(device, index, files.files()) != nullptr;
  });
  if (checkpoint.namespaces.has_own_ipc()) {
    RETURN_IF_ERROR(DumpIdleQueues(checkpoint.tree.root().pid, files));
  }
  // A restore goes on from here only if the tree ends here; else its peers are not kept waiting.
  if (checkpoint.request.fate != Fate::kKill) files.ResumeConnections();
  const std::set<std::uint64_t> zero_files = ZeroFiles(checkpoint);
  return checkpoint.ForEach([&](DumpedProcess& process) -> Status {
    MapZeroFiles(process.areas, zero_files);
    ASSIGN_OR_RETURN(const std::uint32_t exe, files.AddLink(*process.frozen, "exe", O_RDONLY));
    process.mm.set_exe_file_id(exe);
    ASSIGN_OR_RETURN(const std::uint32_t cwd, files.AddLink(*process.frozen, "cwd", O_RDONLY));
    process.fs.set_cwd_id(cwd);
    ASSIGN_OR_RETURN(const std::uint32_t root, files.AddLink(*process.frozen, "root", O_RDONLY));
    process.fs.set_root_id(root);
    for (Area& area : process.areas) {
      if (!area.MapsFile()) continue;
      RETURN_IF_ERROR(files.AddMapping(*process.frozen, area));
    }
    return OkStatus();
  });
}

Status ReadCgroups(Checkpoint& checkpoint) {
  RETURN_IF_ERROR(ReadAffinities(checkpoint.processes));
  return checkpoint.cgroups.Read(checkpoint.processes);
}

Status AskAll(Checkpoint& checkpoint) {
  RETURN_IF_ERROR(
      checkpoint.ForEach([&](DumpedProcess& process) { return checkpoint.seccomp.Add(process); }));
  std::vector<DumpedProcess*> living;
  for (DumpedProcess& process : checkpoint.processes) {
    if (!process.zombie) living.push_back(&process);
  }
  UtsNames* names = checkpoint.namespaces.has_own_uts() ? &checkpoint.uts_names : nullptr;
  std::span<DumpedProcess*> rest = living;
  while (!rest.empty()) {
    constexpr std::size_t kAtOnce = 16;
    RETURN_IF_ERROR(StillWanted(checkpoint.request));
    const std::span<DumpedProcess*> some = rest.first(std::min(rest.size(), kAtOnce));
    RETURN_IF_ERROR(AskInside(some, *checkpoint.files, std::exchange(names, nullptr)));
    rest = rest.subspan(some.size());
  }
  return OkStatus();
}

std::map<std::uint64_t, PageRanges> CleanObjects(Checkpoint& checkpoint) {
  std::vector<MappedAreas> tree;
  for (const DumpedProcess& process : checkpoint.processes) {
    if (!process.zombie) tree.push_back({*process.frozen, process.areas});
  }
  std::set<ObjectKey> open_files;
  for (const OpenFile& file : checkpoint.files->files()) {
    open_files.insert({major(file.st.st_dev), minor(file.st.st_dev), file.st.st_ino});
  }
  return checkpoint.pre_copy.CleanObjects(tree, open_files, checkpoint.request.log);
}

Status ReadMemory(Checkpoint& checkpoint, HeldSink& sink) {
  const auto start = steady_clock::now();
  std::vector<MemoryDumper::Process> processes;
  for (DumpedProcess& process : checkpoint.processes) {
    if (process.zombie) continue;
    std::vector<std::uint64_t> stack_pointers;
    stack_pointers.reserve(process.threads.size());
    for (const DumpedThread& thread : process.threads) {
      stack_pointers.push_back(arch::StackPointer(thread.registers.general));
    }
    std::ranges::sort(stack_pointers);
    processes.push_back({*process.frozen, process.areas, std::move(stack_pointers),
                         checkpoint.pre_copy.Find(*process.frozen)});
  }
  RETURN_IF_ERROR(StillWanted(checkpoint.request));
  checkpoint.memory.SetClean(CleanObjects(checkpoint));
  RETURN_IF_ERROR(checkpoint.memory.Add(processes));
  for (auto& [id, file] : checkpoint.files->memory_files()) {
    RETURN_IF_ERROR(file.own ? checkpoint.memory.AddObject(id, std::move(file.own))
                             : checkpoint.memory.AddBorrowed(id, file.borrowed));
  }
  RETURN_IF_ERROR(checkpoint.memory.WritePages(sink));
  checkpoint.report.memory = Since(start);
  return OkStatus();
}

Status WriteInventory(const Checkpoint& checkpoint, ImageSink& sink) {
  image::InventoryEntry inventory;
  inventory.set_img_version(2);
  inventory.set_fdinfo_per_id(true);
  inventory.set_ns_per_id(true);
  // CRIU then restores only with --tcp-close, which runc does not pass unasked.
  if (checkpoint.files->HasConnections() && !checkpoint.request.options.tcp_established) {
    inventory.set_tcp_close(true);
  }
  inventory.set_lsmtype(ActiveModule());
  inventory.mutable_plugins_entry();  // CRIU takes its absence for "all of them"
  image::TaskKobjIdsEntry& ids = *inventory.mutable_root_ids();
  ids.set_vm_id(1);
  ids.set_files_id(1);
  ids.set_fs_id(1);
  ids.set_sighand_id(1);
  checkpoint.namespaces.NumberOurs(ids);
  if (checkpoint.LocksWholeNetwork()) inventory.set_network_lock_method(kNetworkLockNftables);
  RETURN_IF_ERROR(checkpoint.cgroups.WriteImage(inventory, sink));
  inventory.set_dump_criu_run_id(checkpoint.run_id);
  return PutOne(sink, ImageName("inventory"), "inventory", inventory);
}

Status WriteImages(Checkpoint& checkpoint, ImageSink& sink) {
  RETURN_IF_ERROR(WriteTaskImages(checkpoint.processes, checkpoint.namespaces.ids(), sink));
  RETURN_IF_ERROR(checkpoint.files->WriteImages(sink));
  RETURN_IF_ERROR(checkpoint.memory.WritePageMaps(sink));
  RETURN_IF_ERROR(checkpoint.seccomp.WriteImage(sink));
  if (!checkpoint.segments.empty()) {
    image::TaskKobjIdsEntry ids;
    checkpoint.namespaces.NumberTree(ids);
    RETURN_IF_ERROR(sink.Put(ImageName("ipcns-shm", ids.ipc_ns_id()), checkpoint.segments.bytes()));
  }
  RETURN_IF_ERROR(checkpoint.namespaces.WriteImages(checkpoint.uts_names, sink));
  RETURN_IF_ERROR(StillWanted(checkpoint.request));
  return WriteInventory(checkpoint, sink);
}

// All that must be seen while the tree stands still.
Status ReadAll(Checkpoint& checkpoint, HeldSink& sink) {
  const DumpReport& report = checkpoint.report;
  RETURN_IF_ERROR(CheckTree(checkpoint.tree));
  ASSIGN_OR_RETURN(const dev_t shmem, ShmemDevice());
  BesideLook beside(
      checkpoint.tree, checkpoint.namespaces,
      [&](const FrozenProcess& process) -> Result<std::vector<Area>> {
        ASSIGN_OR_RETURN(std::vector<Vma> vmas,
                         checkpoint.pre_copy.ReadVmas(process, checkpoint.request.fate));
        return ClassifyAreas(std::move(vmas), process.ns_pid, shmem);
      },
      checkpoint.kernel_tasks);
  RETURN_IF_ERROR(ReadTasks(checkpoint, beside));
  RETURN_IF_ERROR(checkpoint.ForEach(
      [&](DumpedProcess& process) { return ReadAioRings(process, checkpoint.report); }));
  RETURN_IF_ERROR(ReadFiles(checkpoint));
  RETURN_IF_ERROR(StillWanted(checkpoint.request));
  RETURN_IF_ERROR(DumpSegments(checkpoint.processes, checkpoint.namespaces.idle_segments(),
                               checkpoint.segments, checkpoint.memory));
  checkpoint.request.log.Info("all of " + std::to_string(report.processes) + " processes, " +
                              std::to_string(report.threads) + " threads and " +
                              std::to_string(checkpoint.files->files().size()) +
                              " open files can be saved");
  // From here on calls run in the tree's threads: what cannot be restored was refused above, but for a thread
  // that has left its process's or the tree's ground, or runs under SCHED_DEADLINE. Those are looked at meanwhile:
  // what was done until then is undone in any case.
  RETURN_IF_ERROR(AskAll(checkpoint));
  RETURN_IF_ERROR(beside.TakeThreads(checkpoint.processes, checkpoint.cgroups));
  RETURN_IF_ERROR(ReadCgroups(checkpoint));
  RETURN_IF_ERROR(ReadMemory(checkpoint, sink));
  checkpoint.request.log.Info(std::to_string(report.pages().written) +
                              " pages of memory saved in " + Milliseconds(report.memory));
  return OkStatus();
}

// Of a tree that is to end, so that its peers are not answered until it is restored.
Result<std::optional<NetworkLock>> LockNetwork(Checkpoint& checkpoint) {
  std::optional<NetworkLock> lock;
  if (checkpoint.request.fate != Fate::kKill) return lock;
  if (checkpoint.LocksWholeNetwork()) {
    ASSIGN_OR_RETURN(UniqueFd ns, OpenAt(checkpoint.tree.root().proc.get(), "ns/net", O_RDONLY));
    ASSIGN_OR_RETURN(NetworkLock taken, NetworkLock::TakeWhole(std::move(ns), checkpoint.run_id));
    lock.emplace(std::move(taken));
    return lock;
  }
  Result<std::optional<NetworkLock>> taken = checkpoint.files->LockNetwork(checkpoint.run_id);
  if (taken.ok()) return *std::move(taken);
  checkpoint.report.notes.push_back(
      "peers that send before the restore will reset their connections: " +
      Message(taken.status()));
  return lock;
}

Status LetGo(FrozenTree& tree, FileDumper& files, Fate fate) {
  switch (fate) {
    case Fate::kLeaveRunning:
      return tree.Thaw();
    case Fate::kLeaveStopped:
      return StopAll(tree);
    case Fate::kKill: {
      const Status status = KillAll(tree);
      files.AbandonConnections();
      return status;
    }
  }
  return Internal("no such fate");
}

// Programs are in the vDSO for a part of a microsecond each time: one that is met there runs on, and is stopped anew,
// as far as that is worth a stop more. Else only a kernel with the same vDSO can restore it.
Result<FrozenTree> FreezeOutsideVdso(const DumpRequest& request, PreCopy& pre_copy,
                                     DumpReport& report) {
  const int tries = request.fate == Fate::kLeaveRunning ? 3 : 20;
  // A signal that waited for it interrupts it there once it runs on; its handler is to come back first.
  constexpr std::chrono::milliseconds kNap{1};
  for (int i = 1;; ++i) {
    const auto start = steady_clock::now();
    ASSIGN_OR_RETURN(FrozenTree tree, FrozenTree::Freeze(request.root, request.deadline,
                                                         request.stop, &pre_copy.earlier_stops()));
    report.freezing = Since(start);
    if (i == tries || !HasThreadInVdso(tree)) return tree;
    RETURN_IF_ERROR(tree.Thaw());
    report.stops.Add(steady_clock::now() - tree.first_stop());
    std::this_thread::sleep_for(kNap);
    RETURN_IF_ERROR(StillWanted(request));
  }
}

// From the stop of the tree to the end. A ring that is busy: the tree runs on, nothing is written, and `report` has
// the stop alone.
Status DumpFrozen(const DumpRequest& request, PreCopy& pre_copy, KernelTasks* kernel_tasks,
                  HeldSink& held, CountingSink& sink, DumpReport& report) {
  ASSIGN_OR_RETURN(FrozenTree tree, FreezeOutsideVdso(request, pre_copy, report));
  // From here on no task of the tree runs and none is born.
  const DumpReport unread = report;
  request.log.Info("the tree of pid " + std::to_string(request.root) + " stands still after " +
                   Milliseconds(report.freezing));
  const auto first_stop = tree.first_stop();
  if (request.stop_changed) request.stop_changed(true, report.stops.total);

  ASSIGN_OR_RETURN(NamespaceDumper namespaces, NamespaceDumper::Create(tree.root()));
  ASSIGN_OR_RETURN(std::unique_ptr<FileDumper> files,
                   FileDumper::Create(tree, request.options, request.fate, report.notes));
  ASSIGN_OR_RETURN(CgroupDumper cgroups, CgroupDumper::Create(tree.root(), request.options));
  Checkpoint checkpoint{.request = request,
                        .tree = tree,
                        .report = report,
                        .pre_copy = pre_copy,
                        .kernel_tasks = kernel_tasks,
                        .namespaces = std::move(namespaces),
                        .files = std::move(files),
                        .cgroups = std::move(cgroups)};
  ASSIGN_OR_RETURN(const std::string run_id, ReadFileAt(AT_FDCWD, "/proc/sys/kernel/random/uuid"));
  checkpoint.run_id = text::Trim(run_id);
  const Status read = ReadAll(checkpoint, held);
  if (IsBusyRing(read)) {
    report = unread;
    RETURN_IF_ERROR(tree.Thaw());
    report.stops.Add(steady_clock::now() - first_stop);
    if (request.stop_changed) request.stop_changed(false, report.stops.total);
  }
  RETURN_IF_ERROR(read);
  if (request.while_frozen) {
    std::vector<pid_t> others;
    for (const auto& other : checkpoint.namespaces.other_mounts()) {
      others.push_back(other.process->pid);
    }
    RETURN_IF_ERROR(checkpoint.files->links().MakeInMemory());
    RETURN_IF_ERROR(request.while_frozen(others));
  }
  ASSIGN_OR_RETURN(std::optional<NetworkLock> lock, LockNetwork(checkpoint));
  checkpoint.files->GiveBack();
  std::set<pid_t> pids;
  for (const FrozenProcess& process : tree.processes()) pids.insert(process.pid);

  // A tree that is to end, or to stay stopped, stands still until its checkpoint is whole.
  const bool runs_on = request.fate == Fate::kLeaveRunning;
  if (runs_on) RETURN_IF_ERROR(LetGo(tree, *checkpoint.files, request.fate));
  const Stops before = report.stops;
  const auto count_stop = [&] {
    report.stops = before;
    report.stops.Add(steady_clock::now() - first_stop);
    if (request.stop_changed) request.stop_changed(!runs_on, report.stops.total);
  };
  count_stop();
  if (runs_on) {
    request.log.Info("the tree runs again after " + Milliseconds(Since(first_stop)));
    RETURN_IF_ERROR(pre_copy.CheckAdvices());
    pre_copy.End();
  }
  RETURN_IF_ERROR(TryNetworks(checkpoint));
  RETURN_IF_ERROR(held.PassOn());
  std::ranges::move(NameStrangers(pids, checkpoint.namespaces), std::back_inserter(report.notes));
  RETURN_IF_ERROR(WriteImages(checkpoint, sink));
  checkpoint.processes = {};  // the end of the archive needs room, too
  report.image_bytes = sink.bytes();
  RETURN_IF_ERROR(checkpoint.files->links().Make());
  if (request.commit) RETURN_IF_ERROR(request.commit(report));
  checkpoint.files->links().Commit();
  if (!runs_on) {
    RETURN_IF_ERROR(LetGo(tree, *checkpoint.files, request.fate));
    count_stop();
    request.log.Info("the checkpoint is whole; the tree was " +
                     std::string(request.fate == Fate::kKill ? "ended" : "left stopped"));
  }
  const Status kept = lock ? lock->Keep() : OkStatus();
  if (!kept.ok()) {
    report.notes.push_back("the network is not locked until the restore: " + Message(kept));
  }
  return OkStatus();
}

}  // namespace

Result<DumpReport> Dump(const DumpRequest& request, ImageSink& user_sink) {
  CountingSink sink(user_sink);
  DumpReport report;
  RETURN_IF_ERROR(CheckRoot(request.root));
  ASSIGN_OR_RETURN(PreCopy pre_copy, PreCopy::Run(request, sink, report));
  // Else what the copy was cancelled at is seized once more, and said to be somebody's tracee.
  RETURN_IF_ERROR(StillWanted(request));
  KernelAhead kernel = OpenKernelFor(request.root);
  HeldSink held(sink);
  held.Prepare(pre_copy.rest_bytes(), pre_copy.rest_processes());
  constexpr int kTries = 30;
  constexpr std::chrono::milliseconds kNap{20};
  Status status;
  for (int i = 1; i <= kTries; ++i) {
    status =
        DumpFrozen(request, pre_copy, kernel.tasks ? &*kernel.tasks : nullptr, held, sink, report);
    if (!IsBusyRing(status)) break;
    request.log.Info("the tree runs on for a moment: " + Message(status));
    std::this_thread::sleep_for(kNap);
    RETURN_IF_ERROR(StillWanted(request));
  }
  RETURN_IF_ERROR(status);
  return report;
}

}  // namespace stasis::engine
