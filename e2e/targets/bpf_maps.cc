// bpf(2): a hash and a frozen array, also by a second descriptor that may only read.
#include <linux/bpf.h>
#include <sys/syscall.h>

#include <cstdint>
#include <cstring>

#include "target.h"

namespace {

int Bpf(int command, const bpf_attr& attributes) {
  return static_cast<int>(syscall(SYS_bpf, command, &attributes, sizeof(attributes)));
}

int Make(unsigned type, const char* name) {
  bpf_attr attributes = {};
  attributes.map_type = type;
  attributes.key_size = sizeof(std::uint32_t);
  attributes.value_size = sizeof(std::uint64_t);
  attributes.max_entries = 16;
  strcpy(attributes.map_name, name);
  return Bpf(BPF_MAP_CREATE, attributes);
}

int Element(int command, int fd, std::uint32_t key, std::uint64_t& value) {
  bpf_attr attributes = {};
  attributes.map_fd = static_cast<std::uint32_t>(fd);
  attributes.key = reinterpret_cast<std::uint64_t>(&key);
  attributes.value = reinterpret_cast<std::uint64_t>(&value);
  return Bpf(command, attributes);
}

std::uint64_t Get(int fd, std::uint32_t key) {
  std::uint64_t value = 0;
  return Element(BPF_MAP_LOOKUP_ELEM, fd, key, value) == 0 ? value : 0;
}

int Put(int fd, std::uint32_t key, std::uint64_t value) {
  return Element(BPF_MAP_UPDATE_ELEM, fd, key, value);
}

bpf_map_info InfoOf(int fd) {
  bpf_map_info info = {};
  bpf_attr attributes = {};
  attributes.info.bpf_fd = static_cast<std::uint32_t>(fd);
  attributes.info.info_len = sizeof(info);
  attributes.info.info = reinterpret_cast<std::uint64_t>(&info);
  CHECK(Bpf(BPF_OBJ_GET_INFO_BY_FD, attributes) == 0);
  return info;
}

int OpenToRead(int fd) {
  bpf_attr attributes = {};
  attributes.map_id = InfoOf(fd).id;
  attributes.open_flags = BPF_F_RDONLY;
  return Bpf(BPF_MAP_GET_FD_BY_ID, attributes);
}

}  // namespace

int main(int, char** argv) {
  const int hash = Make(BPF_MAP_TYPE_HASH, "a_hash"), array = Make(BPF_MAP_TYPE_ARRAY, "an_array");
  const int reader = hash < 0 ? -1 : OpenToRead(hash);
  if (hash < 0 || array < 0 || reader < 0) {
    target::PassCheckpoint(argv[1]);
    std::printf("no BPF maps here (CAP_BPF, CAP_SYS_ADMIN)\n");
    return 77;
  }
  CHECK(Put(hash, 7, 70) == 0 && Put(hash, 0xfffffffe, 71) == 0 && Put(array, 15, 1ull << 40) == 0);
  bpf_attr freeze = {};
  freeze.map_fd = static_cast<std::uint32_t>(array);
  CHECK(Bpf(BPF_MAP_FREEZE, freeze) == 0);

  target::PassCheckpoint(argv[1]);

  CHECK(Get(hash, 7) == 70 && Get(hash, 0xfffffffe) == 71 && Get(hash, 8) == 0);
  CHECK(Get(array, 15) == 1ull << 40 && Get(array, 0) == 0);
  CHECK(Put(array, 0, 1) == -1 && errno == EPERM);
  CHECK(strcmp(InfoOf(hash).name, "a_hash") == 0 && InfoOf(hash).max_entries == 16);
  CHECK(Put(hash, 8, 80) == 0 && Get(reader, 8) == 80);
  CHECK(Put(reader, 8, 81) == -1 && errno == EPERM);
}
