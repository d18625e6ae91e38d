// Asynchronous I/O contexts (io_setup): fetched and waiting events, and that they go on.
#include <linux/aio_abi.h>
#include <sys/syscall.h>

#include "target.h"

namespace {

long Submit(aio_context_t context, iocb* request) {
  return syscall(SYS_io_submit, context, 1, &request);
}

long Fetch(aio_context_t context, io_event* event) {
  timespec none = {};
  return syscall(SYS_io_getevents, context, 0, 1, event, &none);
}

}  // namespace

int main(int, char** argv) {
  aio_context_t used = 0, fresh = 0;
  CHECK(syscall(SYS_io_setup, 100, &used) == 0);
  CHECK(syscall(SYS_io_setup, 1000, &fresh) == 0);
  const int file = open(target::In(argv[1], "data").c_str(), O_RDWR | O_CREAT, 0600);
  char text[] = "0123456789";
  iocb request = {};
  request.aio_lio_opcode = IOCB_CMD_PWRITE;
  request.aio_fildes = static_cast<unsigned>(file);
  request.aio_buf = reinterpret_cast<std::uint64_t>(text);
  request.aio_nbytes = 10;
  io_event event = {};
  for (int i = 0; i < 1000; ++i) {
    CHECK_EQ(Submit(used, &request), 1);
    while (Fetch(used, &event) == 0) {
    }
  }
  for (std::uint64_t i = 0; i < 5; ++i) {
    request.aio_data = i;
    CHECK_EQ(Submit(used, &request), 1);
  }
  target::Sleep(50);  // until all have ended

  target::PassCheckpoint(argv[1]);

  for (std::uint64_t i = 0; i < 5; ++i) {
    CHECK_EQ(Fetch(used, &event), 1);
    CHECK_EQ(event.data, i);
    CHECK_EQ(event.obj, reinterpret_cast<std::uint64_t>(&request));
    CHECK_EQ(event.res, 10);
  }
  CHECK_EQ(Fetch(used, &event), 0);
  for (const aio_context_t context : {used, fresh}) {
    for (std::uint64_t i = 0; i < 3000; ++i) {
      request.aio_data = i;
      CHECK_EQ(Submit(context, &request), 1);
      while (Fetch(context, &event) == 0) {
      }
      CHECK_EQ(event.data, i);
    }
    CHECK(syscall(SYS_io_destroy, context) == 0);
  }
}
