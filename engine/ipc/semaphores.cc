// State    key, owner, mode and values by semctl(2) IPC_STAT and GETALL; whether anybody ever operated on
//          the set (sem_otime), which tells programs that its maker has initialized it
// Image    "ipcns-sem-N": an entry, then its values, 16 bits each, padded to 8 bytes
// Restore  by the tree's root, so that it is theirs; an operation that changes nothing sets sem_otime
// Lost     what SEM_UNDO would take back when a process ends: no interface tells. The creator's ids, who
//          operated last, and when
// Source   semget(2), semctl(2), semop(2), svipc(7); tested on 6.18
#include <sys/sem.h>
#include <sys/syscall.h>

#include <cerrno>
#include <cstring>
#include <span>

#include "engine/ipc/ipc_namespace.h"
#include "engine/ipc/ipc_objects.h"

namespace stasis::engine {
namespace {

constexpr std::uint32_t kMostSemaphores = 32000;  // SEMMSL
constexpr unsigned kMostValue = 32767;            // SEMVMX

// semctl(2): the caller defines it.
union SemaphoreArgument {
  int value;
  semid_ds* set;
  unsigned short* values;
};

std::string Name(std::uint32_t id) { return "System V semaphores " + std::to_string(id); }

std::size_t PaddedBytes(std::uint32_t count) {
  return (count * sizeof(unsigned short) + 7) / 8 * 8;
}

Result<semid_ds> Stat(int id) {
  semid_ds set = {};
  SemaphoreArgument argument = {.set = &set};
  if (::semctl(id, 0, IPC_STAT, argument) == 0) return set;
  if (errno == EINVAL || errno == EIDRM) return NotFound(Name(static_cast<unsigned>(id)));
  return SyscallError(errno, "semctl IPC_STAT");
}

struct Set {
  image::IpcSemEntry entry;
  std::vector<unsigned short> values;
};

Result<std::vector<Set>> ReadSets(const ImageSource& source, const std::string& name) {
  std::vector<Set> sets;
  Result<ImageFileReader> reader = ImageFileReader::Open(source, name, "ipcns-sem");
  if (reader.status().code() == StatusCode::kNotFound) return sets;
  RETURN_IF_ERROR(reader.status());
  while (!reader->AtEnd()) {
    Set& set = sets.emplace_back();
    RETURN_IF_ERROR(reader->Record(set.entry));
    if (set.entry.nsems() == 0 || set.entry.nsems() > kMostSemaphores) {
      return InvalidArgument(name + ": a set of " + std::to_string(set.entry.nsems()));
    }
    const std::size_t size = PaddedBytes(set.entry.nsems());
    ASSIGN_OR_RETURN(const std::string_view bytes, reader->Raw(size));
    if (bytes.size() != size) return DataLoss(name + " ends within a set");
    set.values.resize(set.entry.nsems());
    std::memcpy(set.values.data(), bytes.data(), set.values.size() * sizeof(unsigned short));
  }
  return sets;
}

// Sets sem_otime, and no value.
Status Operate(RemoteSyscalls& remote, std::uint32_t id, unsigned short value) {
  const short step = value < kMostValue ? 1 : -1;
  const sembuf operations[] = {{.sem_num = 0, .sem_op = step, .sem_flg = IPC_NOWAIT},
                               {.sem_num = 0, .sem_op = static_cast<short>(-step), .sem_flg = 0}};
  ASSIGN_OR_RETURN(const std::uint64_t at, remote.PutValue(operations));
  return remote.Call("semop", SYS_semop, id, at, std::size(operations)).status();
}

Status Make(RestoredProcess& root, const Set& set) {
  RemoteSyscalls& remote = *root.remote;
  const image::IpcDescEntry& description = set.entry.desc();
  remote.ResetArguments();
  RETURN_IF_ERROR(MakeWithId(
      root.pid, static_cast<int>(description.id()),
      {.name = Name(description.id()),
       .next_id = "sem_next_id",
       .make =
           [&] {
             return remote.Call("semget", SYS_semget, description.key(), set.entry.nsems(),
                                IPC_CREAT | IPC_EXCL | 0600);
           },
       .remove =
           [&](std::uint64_t other) {
             return remote.Call("semctl IPC_RMID", SYS_semctl, other, 0, IPC_RMID, 0).status();
           }}));
  ASSIGN_OR_RETURN(const std::uint64_t values, remote.Put(std::as_bytes(std::span(set.values))));
  RETURN_IF_ERROR(
      remote.Call("semctl SETALL", SYS_semctl, description.id(), 0, SETALL, values).status());
  if (set.entry.operated()) {
    RETURN_IF_ERROR(Operate(remote, description.id(), set.values.front()));
  }
  ASSIGN_OR_RETURN(const UserIds ids, UserIds::Of(root.proc.get()));
  return InIpcNamespace(root.pid, [&]() -> Status {
    semid_ds wanted = {};
    RETURN_IF_ERROR(SetOwner(description, ids, wanted.sem_perm));
    SemaphoreArgument argument = {.set = &wanted};
    if (::semctl(static_cast<int>(description.id()), 0, IPC_SET, argument) == 0) return OkStatus();
    return SyscallError(errno, Name(description.id()) + ": semctl IPC_SET");
  });
}

}  // namespace

Status DumpSemaphores(const UserIds& ids, ImageFileBuilder& file) {
  ASSIGN_OR_RETURN(const std::vector<int> numbers, ListObjects("sem"));
  for (const int id : numbers) {
    const Result<semid_ds> set = Stat(id);
    if (set.status().code() == StatusCode::kNotFound) continue;  // removed by another container
    RETURN_IF_ERROR(set.status());
    image::IpcSemEntry entry;
    *entry.mutable_desc() = DescribeObject(set->sem_perm, id, ids);
    entry.set_nsems(static_cast<std::uint32_t>(set->sem_nsems));
    if (set->sem_otime != 0) entry.set_operated(true);
    std::vector<unsigned short> values(PaddedBytes(entry.nsems()) / sizeof(unsigned short));
    SemaphoreArgument argument = {.values = values.data()};
    if (::semctl(id, 0, GETALL, argument) != 0) return SyscallError(errno, "semctl GETALL");
    RETURN_IF_ERROR(file.Add(entry));
    file.AddRaw({reinterpret_cast<const char*>(values.data()), PaddedBytes(entry.nsems())});
  }
  return OkStatus();
}

Status RestoreSemaphores(RestoredProcess& root, const ImageSource& source, const std::string& name,
                         std::vector<std::string>& notes) {
  ASSIGN_OR_RETURN(const std::vector<Set> sets, ReadSets(source, name));
  for (const Set& set : sets) {
    const image::IpcDescEntry& description = set.entry.desc();
    semid_ds there = {};
    const Status known = InIpcNamespace(root.pid, [&]() -> Status {
      ASSIGN_OR_RETURN(there, Stat(static_cast<int>(description.id())));
      return OkStatus();
    });
    if (known.code() == StatusCode::kNotFound) {
      RETURN_IF_ERROR(Make(root, set));
      continue;
    }
    RETURN_IF_ERROR(known);
    if (there.sem_perm.__key != static_cast<key_t>(description.key()) ||
        there.sem_nsems != set.entry.nsems()) {
      return AlreadyExists(Name(description.id()) + " are others here; remove them (ipcrm)");
    }
    notes.push_back(Name(description.id()) + " were there already and have the values of now");
  }
  return OkStatus();
}

}  // namespace stasis::engine
