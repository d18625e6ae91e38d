/* Prints its effective user; setuid in its image, it shows whether a container may gain rights.
 */
#include <stdio.h>
#include <unistd.h>

int main(void) {
  printf("Effective uid: %u\n", (unsigned)geteuid());
  return 0;
}
