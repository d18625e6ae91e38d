#include "engine/dump_check.h"

#include <fcntl.h>

#include <algorithm>
#include <optional>
#include <set>
#include <utility>

#include "engine/base/io.h"
#include "engine/dump_files.h"
#include "engine/memory/dump_areas.h"
#include "engine/memory/system_v.h"
#include "engine/proc/task.h"
#include "engine/tasks/dump_namespaces.h"
#include "engine/tasks/dump_tree.h"
#include "engine/tracee/frozen_tree.h"

namespace stasis::engine {
namespace {

// A task on its way out has no memory, files and namespaces any more (do_exit() in kernel/exit.c): what is
// seen of it then says nothing.
bool Ends(const FrozenProcess& process) {
  const Result<std::string> text = ReadFileAt(process.proc.get(), "stat");
  const Result<TaskStat> stat = text.ok() ? ParseTaskStat(*text) : text.status();
  constexpr unsigned kExiting = 4;  // PF_EXITING in include/linux/sched.h
  return !stat.ok() || (stat->flags & kExiting) != 0;
}

class Checker {
 public:
  Checker(FrozenTree& tree, MemoryLook look, DumpCheck& found)
      : tree_(tree), look_(look), found_(found) {}

  void Add(const Status& status) {
    // Not there any more, or not yet: the tree runs.
    if (status.ok() || status.code() == StatusCode::kNotFound) return;
    std::string reason(Message(status));
    if (known_.insert(reason).second) found_.obstacles.push_back(std::move(reason));
  }
  void Add(const Status& status, const FrozenProcess& process) {
    if (!status.ok() && !Ends(process)) Add(Annotate(status, Name(process)));
  }

  void Tasks(const CompareMounts& compare_mounts, bool makes_namespaces) {
    Status shared = CheckTree(tree_);
    while (!shared.ok() && ForgetEnded()) shared = CheckTree(tree_);
    Add(shared);
    Result<NamespaceDumper> namespaces = NamespaceDumper::Create(tree_.root());
    Add(namespaces.status());
    for (const FrozenProcess& process : tree_.processes()) {
      ++found_.processes;
      found_.threads += process.threads.size();
      for (const FrozenThread& thread : process.threads) {
        Add(Annotate(CheckShares(process, thread), Name(thread)), process);
      }
      if (namespaces.ok()) Add(namespaces->CheckSame(process), process);
      if (process.status.tracer_pid == 0) continue;
      Add(FailedPrecondition(Name(process) + " is traced by pid " +
                             std::to_string(process.status.tracer_pid) +
                             " (a debugger or strace); end that first"));
    }
    if (!namespaces.ok()) return;
    NamespaceDumper reader = *std::move(namespaces);
    Add(reader.FindOthers(tree_.processes()));
    Add(reader.Read(tree_.processes(), compare_mounts, std::nullopt, makes_namespaces));
    if (look_ != MemoryLook::kQuick) Add(reader.TryNetworks());
    for (FrozenProcess& process : tree_.processes()) {
      DumpedProcess& dumped = processes_.emplace_back();
      dumped.frozen = &process;
      dumped.zombie = process.zombie;
      dumped.threads.emplace_back();  // what is said of a process is said of its leader
    }
    NumberTasks(processes_, reader);
    namespaces_ = std::move(reader);
    if (ForgetEnded()) {
      for (DumpedProcess& process : processes_) process.zombie = process.frozen->zombie;
    }
    Add(CheckForks(processes_));
  }

  Status Files(const Options& options) {
    if (processes_.empty()) return OkStatus();  // for lack of a number of its descriptor table
    ASSIGN_OR_RETURN(const std::unique_ptr<FileDumper> files,
                     FileDumper::Create(tree_, options, Fate::kLeaveRunning, found_.notes));
    files->OnlyLook();
    if (namespaces_) Add(files->SetNamespaces(*namespaces_));
    Add(files->Collect(TableIds(processes_)));
    found_.files = files->files().size();
    for (const OpenFile& file : files->files()) {
      Result<image::FileEntry> entry = files->DumpOne(file);
      Add(entry.status());
      if (entry.ok())
        files->AddEntry(*std::move(entry));  // what memory maps is looked for among them
    }
    Add(files->DumpAutofs());
    ASSIGN_OR_RETURN(const dev_t shmem, ShmemDevice());
    for (const FrozenProcess& process : tree_.processes()) {
      if (process.zombie) continue;
      for (const char* const link : {"exe", "cwd", "root"}) {
        Add(files->AddLink(process, link, O_RDONLY).status(), process);
      }
      Add(Memory(process, shmem, *files), process);
    }
    return OkStatus();
  }

 private:
  // True when there are any more.
  bool ForgetEnded() {
    bool any = false;
    for (FrozenProcess& process : tree_.processes()) {
      if (process.zombie || !Ends(process)) continue;
      process.zombie = any = true;
    }
    return any;
  }

  Result<std::vector<Vma>> ReadVmas(const FrozenProcess& process) const {
    if (look_ == MemoryLook::kQuick) {
      ASSIGN_OR_RETURN(std::vector<Vma> vmas, ReadMaps(process.proc.get()));
      // Of what has no path its flags tell what it is: memory of huge pages.
      const auto has_path = [](const Vma& vma) { return !vma.path.ends_with(" (deleted)"); };
      if (std::ranges::all_of(vmas, has_path)) return vmas;
    }
    return ReadSmaps(process.proc.get());
  }

  Status Memory(const FrozenProcess& process, dev_t shmem, FileDumper& files) {
    ASSIGN_OR_RETURN(std::vector<Vma> vmas, ReadVmas(process));
    ASSIGN_OR_RETURN(std::vector<Area> areas,
                     ClassifyAreas(std::move(vmas), process.ns_pid, shmem));
    for (Area& area : areas) {
      if (area.MapsFile()) Add(Annotate(files.AddMapping(process, area), Name(process)));
      if (!area.Is(kAreaSystemV)) continue;
      Add(Annotate(ReadSegment(process.pid, static_cast<int>(area.vma.inode)).status(),
                   Name(process)));
    }
    return OkStatus();
  }

  FrozenTree& tree_;
  const MemoryLook look_;
  DumpCheck& found_;
  std::vector<DumpedProcess> processes_;
  std::optional<NamespaceDumper> namespaces_;
  std::set<std::string> known_;
};

}  // namespace

Result<DumpCheck> CheckDump(pid_t root, const Options& options, const CompareMounts& compare_mounts,
                            MemoryLook look) {
  RETURN_IF_ERROR(CheckRoot(root));
  ASSIGN_OR_RETURN(FrozenTree tree, FrozenTree::Look(root));
  DumpCheck found;
  Checker checker(tree, look, found);
  checker.Tasks(compare_mounts, options.own_namespaces);
  RETURN_IF_ERROR(checker.Files(options));
  return found;
}

std::vector<std::string> NeedsOfRestore(pid_t root) {
  Result<FrozenTree> tree = FrozenTree::Look(root);
  if (!tree.ok() || tree->processes().empty()) return {};
  Result<NamespaceDumper> namespaces = NamespaceDumper::Create(tree->root());
  if (!namespaces.ok() || !namespaces->FindOthers(tree->processes()).ok()) return {};
  // What is refused is among the obstacles.
  if (namespaces->ReadNetworks(tree->processes()).ok()) (void)namespaces->TryNetworks();
  return namespaces->NeedsOfNetworks();
}

}  // namespace stasis::engine
