#include "engine/restore.h"

#include <absl/cleanup/cleanup.h>
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <ranges>
#include <utility>

#include "engine/base/io.h"
#include "engine/checkpoint_images.h"
#include "engine/files/restore_files.h"
#include "engine/image/image_file.h"
#include "engine/ipc/ipc_objects.h"
#include "engine/memory/lazy_pages.h"
#include "engine/memory/restore_memory.h"
#include "engine/mounts/autofs.h"
#include "engine/mounts/restore_mounts.h"
#include "engine/proc/task.h"
#include "engine/tasks/cgroups.h"
#include "engine/tasks/ipc_settings.h"
#include "engine/tasks/pid_reserver.h"
#include "engine/tasks/process_tree.h"
#include "engine/tasks/restore_attributes.h"
#include "engine/tasks/restore_clocks.h"
#include "engine/tasks/restore_namespaces.h"
#include "engine/tasks/security_label.h"

namespace stasis::engine {
namespace {

using std::chrono::steady_clock;

// A restore under way. Until Release() nothing of it runs, and its destruction kills it all.
class Restoration {
 public:
  Restoration(const RestoreRequest& request, const ImageSource& source)
      : request_(request), source_(source) {}

  ~Restoration() {
    if (released_) return;
    // The root takes its children's place in a pid namespace of its own; on the host each must be killed.
    for (RestoredProcess& process : processes_) Kill(process.pid);
    if (taken_) Kill(request_.placeholder);
    files_
        .reset();  // an init ends only when all of its pid namespace are waited for, stand-ins of ours too
    // A thread that we trace is there until we have waited for it, and so is its process. Its parent sees its
    // end only then, unless we are that: then who started it waits for it. Parents come last: an init does not end
    // before all of its pid namespace are waited for (zap_pid_ns_processes() in kernel/pid_namespace.c).
    for (RestoredProcess& process : std::views::reverse(processes_)) {
      for (RestoredProcess::Thread& thread : process.others) AwaitDeath(thread.tracee);
      if (process.pid != request_.placeholder || !IsOurChild(process.pid))
        AwaitDeath(process.leader);
    }
  }

  Status Run() {
    ASSIGN_OR_RETURN(images_, LoadCheckpoint(source_));
    request_.log.Info("images of " + std::to_string(images_.processes.size()) + " processes and " +
                      std::to_string(images_.files.size()) + " files");
    RETURN_IF_ERROR(Goon());
    ASSIGN_OR_RETURN(cgroups_, CgroupRestorer::Create(images_, source_, request_.options,
                                                      request_.placeholder, report.notes));
    RETURN_IF_ERROR(MakeTree());
    request_.log.Info("processes made, " + std::to_string(report.pages_restored) +
                      " pages of memory filled");
    // First all that has a number of its own: descriptors may need processes with any free one.
    for (RestoredProcess& process : processes_) {
      if (process.image->zombie) continue;
      RETURN_IF_ERROR(Goon());
      RETURN_IF_ERROR(Named(MakeThreads(process, *reserver_), process));
    }
    files_->SetTree(processes_);
    for (RestoredProcess& process : processes_) RETURN_IF_ERROR(FurnishOne(process));
    RETURN_IF_ERROR(cgroups_->MoveThreads(processes_));
    // Descriptors that refer to others, and to processes, when all are there.
    RETURN_IF_ERROR(files_->Finish(processes_));
    request_.log.Info("descriptors, threads and attributes are as they were");
    RETURN_IF_ERROR(EndZombies(processes_));
    RETURN_IF_ERROR(ConnectAutofs(processes_, autofs_, source_));
    for (RestoredProcess& process : processes_) {
      if (process.image->zombie) continue;
      RETURN_IF_ERROR(Named(RestoreRoot(process, images_), process));
      RETURN_IF_ERROR(Named(RestoreSignals(process), process));
      RETURN_IF_ERROR(Named(
          RestoreConfinement(process, images_, live_filters_, *labels_, report.notes), process));
    }
    RETURN_IF_ERROR(Goon());
    for (RestoredProcess& process : processes_) {
      if (process.image->zombie) continue;
      RETURN_IF_ERROR(Named(BeginWaits(process), process));
      RETURN_IF_ERROR(Named(SetFinalRegisters(process), process));
    }
    return Release();
  }

  RestoreReport report;

 private:
  static void Kill(pid_t pid) {
    if (pid > 0) ::kill(pid, SIGKILL);
  }

  static bool IsOurChild(pid_t pid) {
    const Result<std::string> text =
        ReadFileAt(AT_FDCWD, "/proc/" + std::to_string(pid) + "/status");
    const Result<TaskStatus> status = text.ok() ? ParseTaskStatus(*text) : text.status();
    return status.ok() && status->ppid == ::getpid();
  }

  static void AwaitDeath(Tracee& tracee) {
    constexpr std::chrono::seconds kTimeout{
        2};  // a killed task that does not end hangs in a device
    const auto give_up = steady_clock::now() + kTimeout;
    while (tracee.tid() != 0) {
      const Result<Stop> stop = WaitForStop(tracee.tid(), give_up);
      if (!stop.ok() || stop->kind == Stop::Kind::kExited) tracee.Forget();
    }
  }

  static Status Named(const Status& status, const RestoredProcess& process) {
    return Annotate(status, "pid " + std::to_string(process.image->pid()));
  }

  Status Goon() const {
    if (request_.stop.stop_requested()) return Cancelled("the restore was cancelled");
    if (steady_clock::now() > request_.deadline)
      return DeadlineExceeded("the restore took too long");
    return OkStatus();
  }

  Status MakeTree() {
    const std::vector<pid_t> pids = images_.TaskIds();
    ASSIGN_OR_RETURN(const std::uint64_t area, ChooseAreaAddress(images_));
    ASSIGN_OR_RETURN(PidReserver reserver,
                     PidReserver::Start(request_.placeholder, request_.placeholder_program, pids));
    reserver_.emplace(std::move(reserver));
    std::vector<pid_t> others = pids;
    std::erase(others, images_.processes.front().pid());
    RETURN_IF_ERROR(reserver_->CheckFree(others));
    taken_ = true;
    ASSIGN_OR_RETURN(RestoredProcess root,
                     TakePlaceholder(request_.placeholder, images_.processes.front(), area));
    RETURN_IF_ERROR(CheckRootPid());
    LaterInNamespaces later;
    RETURN_IF_ERROR(RestoreNamespaces(root, images_, source_, request_.options, request_.fill_tmpfs,
                                      later, report.notes));
    mounts_ = std::move(later.mounts);
    namespaces_ = std::move(later.others);
    firewalls_ = std::move(later.firewalls);
    RETURN_IF_ERROR(cgroups_->MakeNamespace(root, images_));
    ASSIGN_OR_RETURN(live_filters_, ReadSeccompFilters(request_.placeholder));
    ASSIGN_OR_RETURN(
        labels_, Labels::Create(images_, request_.placeholder, request_.options.own_namespaces));
    RETURN_IF_ERROR(RestoreClocks(root, source_, request_.placeholder_program,
                                  request_.options.clocks_may_go_back, report.notes,
                                  HadOwnClocks()));
    RETURN_IF_ERROR(MakeMounts(root, later.pending_mounts));
    const std::uint32_t ipc = images_.processes.front().ids.ipc_ns_id();
    RETURN_IF_ERROR(RestoreSemaphores(root, source_, ImageName("ipcns-sem", ipc), report.notes));
    RETURN_IF_ERROR(RestoreMessageQueues(root, source_, ImageName("ipcns-msg", ipc), report.notes));
    // Files are opened by the root while it is still what the runtime started: with its rights.
    processes_.push_back(std::move(root));
    files_ = MakeFileRestorer(processes_.front(), images_, source_, request_.options, &mounts_,
                              &namespaces_);
    RETURN_IF_ERROR(files_->RestoreAll());
    RETURN_IF_ERROR(FinishMounts(processes_.front(), later.pending_mounts, mounts_));
    autofs_ = std::move(later.pending_mounts.autofs);
    RETURN_IF_ERROR(EnterForProgram(processes_.front()));
    RETURN_IF_ERROR(ExecuteProgram(processes_.front(), images_, files_->pathless()));
    RETURN_IF_ERROR(Grow(area));
    if (!later.ipc_settings) return OkStatus();
    return RestoreIpcSettings(processes_.front().pid, *later.ipc_settings, report.notes);
  }

  // On the host, and not given by --join-ns.
  bool HadOwnClocks() const {
    const std::uint32_t dumper = images_.inventory.root_ids().time_ns_id();
    const std::uint32_t tree = images_.processes.front().ids.time_ns_id();
    const bool is_given = std::ranges::any_of(
        request_.options.join_ns, [](const auto& text) { return text.starts_with("time:"); });
    return request_.options.own_namespaces && !is_given && dumper != 0 && tree != 0 &&
           dumper != tree;
  }

  // What a container's processes mounted. On the host a mount namespace is made with all that it had.
  Status MakeMounts(RestoredProcess& root, PendingMounts& later) {
    if (request_.options.own_namespaces) return OkStatus();
    const std::uint32_t number = images_.processes.front().ids.mnt_ns_id();
    ASSIGN_OR_RETURN(
        const auto mounts,
        ReadRecords<image::MntEntry>(source_, ImageName("mountpoints", number), "mountpoints"));
    return RestoreMounts(root, mounts, request_.fill_tmpfs, later, report.notes);
  }

  // Its program is executed where it was: unshare(2) and setns(2) leave that, and what is mapped, as it is.
  Status EnterForProgram(RestoredProcess& process) const {
    const image::FileEntry* const file =
        images_.File(image::FD_REG, process.image->mm.exe_file_id());
    return mounts_.Enter(process, mounts_.NumberOf(file == nullptr ? -1 : file->reg().mnt_id()));
  }

  // Each process has its memory before it is forked, so that its children share what they had in common.
  Status Grow(std::uint64_t area) {
    if (request_.options.lazy_pages) {
      ASSIGN_OR_RETURN(lazy_, LazyPages::Start(request_.page_server_program, source_));
    }
    MemoryProgress progress;
    progress.report = [&, total = TotalBytes()](std::uint64_t pages) {
      if (request_.progress) request_.progress(pages * 4096, total);
    };
    std::vector<const ProcessImage*> all;
    all.reserve(images_.processes.size());
    for (const ProcessImage& process : images_.processes) all.push_back(&process);
    ASSIGN_OR_RETURN(const std::unique_ptr<MemoryRestorer> memory,
                     MemoryRestorer::Create(
                         all, images_, source_, area,
                         [this](RestoredProcess& process, std::uint32_t id, int flags) {
                           return files_->OpenMapped(process, id, flags);
                         },
                         progress, lazy_ ? &*lazy_ : nullptr));
    const Status made = MakeProcesses(
        processes_, images_, files_->pathless(), *reserver_,
        [this](RestoredProcess& process) { return EnterForProgram(process); },
        [&](RestoredProcess& process, const ProcessImage* from) {
          request_.log.Debug("memory of pid " + std::to_string(process.image->pid()));
          RETURN_IF_ERROR(Goon());
          // Its memory is charged to its own cgroup.
          RETURN_IF_ERROR(cgroups_->Move(process));
          return memory->Restore(process, from);
        },
        [this](RestoredProcess& leader) { return files_->TakeTerminal(leader); });
    RETURN_IF_ERROR(made);
    RETURN_IF_ERROR(memory->Finish());
    RETURN_IF_ERROR(cgroups_->SetLater());
    report.pages_restored = progress.pages;
    report.notes.insert(report.notes.end(), progress.notes.begin(), progress.notes.end());
    return OkStatus();
  }

  Status CheckRootPid() const {
    ASSIGN_OR_RETURN(
        const std::string text,
        ReadFileAt(AT_FDCWD, "/proc/" + std::to_string(request_.placeholder) + "/status"));
    ASSIGN_OR_RETURN(const TaskStatus status, ParseTaskStatus(text));
    const pid_t wanted = images_.processes.front().pid();
    if (!status.ns_pid.empty() && status.ns_pid.back() == wanted) return OkStatus();
    return FailedPrecondition("the root of the checkpoint had pid " + std::to_string(wanted) +
                              ", the process to become it has another one in its namespace");
  }

  std::uint64_t TotalBytes() const {
    std::uint64_t total = 0;
    for (const std::string& name : source_.Names()) {
      if (name.starts_with("pages-")) total += source_.Size(name).value_or(0);
    }
    return total;
  }

  Status FurnishOne(RestoredProcess& process) {
    if (process.image->zombie) return OkStatus();
    RETURN_IF_ERROR(Goon());
    RETURN_IF_ERROR(Named(files_->Install(process), process));
    RETURN_IF_ERROR(Named(mounts_.Enter(process, process.image->ids.mnt_ns_id()), process));
    RETURN_IF_ERROR(Named(namespaces_.EnterOwn(process), process));
    return Named(RestoreAttributes(process, images_, files_->pathless(), report.notes), process);
  }

  // The point of no return: the tree runs.
  Status Release() {
    if (lazy_) {
      RETURN_IF_ERROR(lazy_->Begin());
      report.lazy_bytes = lazy_->bytes();
    }
    std::function<Status()> make_rules;
    if (!firewalls_.empty()) make_rules = [this] { return MakeFirewalls(firewalls_); };
    RETURN_IF_ERROR(files_->ResumeConnections(make_rules));
    reserver_.reset();
    if (const Status status = files_->RemoveLinks(); !status.ok()) {
      report.notes.push_back(Message(status));
    }
    for (RestoredProcess& process : processes_) {
      if (process.image->zombie) continue;
      const image::TaskCoreEntry& task = process.image->leader().core.tc();
      if (IsToStop(*process.image) || request_.options.leave_stopped) {
        ::kill(process.pid, task.has_stop_signo() ? static_cast<int>(task.stop_signo()) : SIGSTOP);
      }
      report.threads += process.image->threads.size();
    }
    report.processes = processes_.size();
    request_.log.Info("the tree runs");
    cgroups_->Keep();
    released_ = true;
    Status worst;
    for (RestoredProcess& process : processes_) {
      if (process.image->zombie) continue;
      for (RestoredProcess::Thread& thread : process.others) Let(thread.tracee, worst);
      Let(process.leader, worst);
    }
    report.notes.insert(report.notes.end(), files_->notes().begin(), files_->notes().end());
    return worst;
  }

  static void Let(Tracee& tracee, Status& worst) {
    const Status status = tracee.Detach();
    if (!status.ok() && status.code() != StatusCode::kNotFound) worst = status;
  }

  const RestoreRequest& request_;
  const ImageSource& source_;
  CheckpointImages images_;
  MountNamespaces mounts_;
  AutofsRoots autofs_;
  OtherNamespaces namespaces_;
  std::vector<PendingFirewall> firewalls_;
  std::optional<PidReserver> reserver_;
  std::optional<LazyPages> lazy_;
  std::unique_ptr<FileRestorer> files_;
  std::unique_ptr<CgroupRestorer> cgroups_;
  std::vector<RestoredProcess> processes_;
  std::vector<std::string> live_filters_;
  std::optional<Labels> labels_;
  bool taken_ = false, released_ = false;
};

}  // namespace

Result<RestoreReport> Restore(const RestoreRequest& request, const ImageSource& source) {
  const auto begin = steady_clock::now();
  Restoration restoration(request, source);
  RETURN_IF_ERROR(restoration.Run());
  restoration.report.total =
      std::chrono::duration_cast<std::chrono::microseconds>(steady_clock::now() - begin);
  return std::move(restoration.report);
}

}  // namespace stasis::engine
