// A FIFO with content, open at both ends.
#include <sys/stat.h>

#include "target.h"

int main(int, char** argv) {
  const std::string path = target::In(argv[1], "fifo");
  CHECK(mkfifo(path.c_str(), 0600) == 0);
  const int reader = open(path.c_str(), O_RDONLY | O_NONBLOCK);
  const int writer = open(path.c_str(), O_WRONLY);
  CHECK(reader >= 0 && writer >= 0);
  CHECK_EQ(write(writer, "0123456789", 10), 10);
  char got[32];
  CHECK_EQ(read(reader, got, 4), 4);

  target::PassCheckpoint(argv[1]);

  CHECK_EQ(read(reader, got, sizeof(got)), 6);
  CHECK(memcmp(got, "456789", 6) == 0);
  CHECK_EQ(write(writer, "more", 4), 4);
  CHECK_EQ(read(reader, got, sizeof(got)), 4);
  close(writer);
  CHECK_EQ(read(reader, got, sizeof(got)), 0);
}
