// io_uring(7): what is registered with a ring. Files, buffers, an eventfd, the ring itself; and a ring that a child
// shares.
#include <sys/eventfd.h>
#include <sys/uio.h>

#include <vector>

#include "ring.h"

namespace {

using target::Register;
using target::Ring;

constexpr size_t kPage = 4096, kHuge = size_t{2} << 20;

io_uring_sqe& Fixed(Ring& ring, std::uint8_t operation, int slot, int buffer, void* at,
                    unsigned size) {
  io_uring_sqe& entry = ring.Next();
  entry.opcode = operation;
  entry.flags = IOSQE_FIXED_FILE;
  entry.fd = slot;
  entry.addr = reinterpret_cast<std::uint64_t>(at);
  entry.len = size;
  entry.buf_index = static_cast<std::uint16_t>(buffer);
  return entry;
}

// Writes from one registered buffer and reads into another, both of several pages, by registered files.
void CheckTransfer(Ring& ring, int slot, char* from, char* to, unsigned size) {
  for (unsigned i = 0; i < size; ++i) from[i] = static_cast<char>(i * 7 + i / 251);
  memset(to, 0, size);
  Fixed(ring, IORING_OP_WRITE_FIXED, slot, 0, from, size);
  CHECK_EQ(ring.Run().res, size);
  Fixed(ring, IORING_OP_READ_FIXED, slot, 1, to, size);
  CHECK_EQ(ring.Run().res, size);
  CHECK(memcmp(from, to, size) == 0);
}

char* Memory(size_t size) {
  void* const at = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(at != MAP_FAILED);
  return static_cast<char*>(at);
}

std::uint64_t Told(int fd) {
  std::uint64_t count = 0;
  if (read(fd, &count, sizeof(count)) < 0) CHECK_EQ(errno, EAGAIN);
  return count;
}

// Of another page and place than it begins with.
char* Odd(char* at) { return at + 100; }

void RegisterAll(Ring& ring, int file, char* from, char* to, unsigned size) {
  const std::vector<int> files = {file, -1, file};
  std::vector<std::uint64_t> tags = {0, 0, 999};
  io_uring_rsrc_register all = {};
  all.nr = 3;
  all.data = reinterpret_cast<std::uint64_t>(files.data());
  all.tags = reinterpret_cast<std::uint64_t>(tags.data());
  CHECK_EQ(Register(ring.fd(), IORING_REGISTER_FILES2, &all, sizeof(all)), 0);
  const std::vector<iovec> buffers = {{from, size}, {to, size}, {nullptr, 0}};
  CHECK_EQ(Register(ring.fd(), IORING_REGISTER_BUFFERS, buffers.data(), 3), 0);
}

// A file that is registered twice, one of them with a tag, which is told of when the slot is emptied.
void CheckTag(Ring& ring) {
  const int none = -1;
  io_uring_files_update update = {};
  update.offset = 2;
  update.fds = reinterpret_cast<std::uint64_t>(&none);
  CHECK_EQ(Register(ring.fd(), IORING_REGISTER_FILES_UPDATE, &update, 1), 1);
  CHECK_EQ(target::Enter(ring.fd(), 0, 1, IORING_ENTER_GETEVENTS), 0);
  CHECK_EQ(ring.Take().user_data, 999);
}

void RegisterRing(const Ring& by, const Ring& ring, unsigned index) {
  io_uring_rsrc_update place = {};
  place.offset = index;
  place.data = static_cast<std::uint64_t>(ring.fd());
  CHECK_EQ(Register(by.fd(), IORING_REGISTER_RING_FDS, &place, 1), 1);
}

}  // namespace

int main(int, char** argv) {
  const char* const folder = argv[1];
  const std::string path = target::In(folder, "data");
  const int file = open(path.c_str(), O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600);
  CHECK(file >= 0);
  constexpr unsigned kSize = 3 * kPage + 17;
  char *const from = Memory(4 * kPage), *const to = Memory(4 * kPage);
  Ring ring(8, 0);
  RegisterAll(ring, file, Odd(from), to, kSize);
  RegisterRing(ring, ring, 3);
  const Ring unused(4, 0);
  RegisterRing(ring, unused, 7);
  CheckTransfer(ring, 0, Odd(from), to, kSize);

  Ring telling(8, 0);
  const int told = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  CHECK_EQ(Register(telling.fd(), IORING_REGISTER_EVENTFD, &told, 1), 0);
  telling.Spin(3);
  CHECK(Told(told) > 0);
  Ring quiet(8, 0);  // only of what is completed later
  const int told_later = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  CHECK_EQ(Register(quiet.fd(), IORING_REGISTER_EVENTFD_ASYNC, &told_later, 1), 0);

  Ring large(8, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
  char* const huge = Memory(2 * kHuge);
  const iovec all = {huge, kHuge};
  CHECK_EQ(Register(large.fd(), IORING_REGISTER_BUFFERS, &all, 1), 0);

  Ring shared(8, 0);
  shared.Spin(11);
  int go[2];
  CHECK(pipe(go) == 0);
  const pid_t child = fork();
  if (child == 0) {
    char byte = 0;
    close(go[1]);
    CHECK(read(go[0], &byte, 1) == 1);
    shared.Spin(20);
    _exit(0);
  }
  close(go[0]);

  target::PassCheckpoint(folder);

  CheckTransfer(ring, 0, Odd(from), to, kSize);
  Fixed(ring, IORING_OP_WRITE_FIXED, 1, 0, Odd(from), 1);
  CHECK_EQ(ring.Run().res, -EBADF);
  CheckTag(ring);
  CHECK_EQ(target::Enter(3, 0, 0, IORING_ENTER_REGISTERED_RING), 0);
  CHECK_EQ(target::Enter(7, 0, 0, IORING_ENTER_REGISTERED_RING), 0);
  CHECK(target::Enter(4, 0, 0, IORING_ENTER_REGISTERED_RING) < 0);
  CHECK_EQ(Told(told), 0);
  telling.Spin(1);
  CHECK_EQ(Told(told), 1);
  quiet.Spin(1);
  CHECK_EQ(Told(told_later), 0);
  io_uring_sqe& read_all = large.Next();
  read_all.opcode = IORING_OP_READ_FIXED;
  read_all.fd = file;
  read_all.addr = reinterpret_cast<std::uint64_t>(huge) + kHuge - kSize;
  read_all.len = kSize;
  CHECK_EQ(large.Run().res, kSize);
  CHECK(memcmp(huge + kHuge - kSize, Odd(from), kSize) == 0);
  CHECK(write(go[1], "x", 1) == 1);
  CHECK_EQ(target::ExitCode(child), 0);
  CHECK_EQ(shared.completed(), 31);
  return 0;
}
