// The threads of an exported kernel: `pool.py`'s loop, started when the library is first called. Plain C, but for
// `extern`.
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>

extern "C" {
void tl_pool_init(int32_t helpers);
void tl_pool_size(int32_t helpers);
void tl_pool_worker(int32_t id);
int32_t tl_pool_workers(void);
}

static pthread_mutex_t starting = PTHREAD_MUTEX_INITIALIZER;
static int started = 0, registered = 0;  // after a fork nothing is started; handlers stay registered

static void* work(void* id) {
  tl_pool_worker((int32_t)(intptr_t)id);
  return 0;
}

static void after_fork(void) {
  pthread_mutex_t unlocked = PTHREAD_MUTEX_INITIALIZER;
  starting = unlocked;
  started = 0;
}

static int wanted(void) {
  const char* text = getenv("TILELANG_THREADS");
  int count = text ? atoi(text) : 0;
  if (count <= 0) {
    cpu_set_t mine;
    count = sched_getaffinity(0, sizeof mine, &mine) ? 1 : CPU_COUNT(&mine);
  }
  return count < 1 ? 1 : count > MAX_WORKERS ? MAX_WORKERS : count;
}

extern "C" int32_t tl_workers(void) {
  if (!__atomic_load_n(&started, __ATOMIC_ACQUIRE)) {
    pthread_mutex_lock(&starting);
    if (!started) {
      int helpers = 0;
      tl_pool_init(0);
      if (!registered) registered = pthread_atfork(0, 0, after_fork) == 0;
      for (int id = 1; id < wanted(); id++) {
        pthread_t thread;
        if (pthread_create(&thread, 0, work, (void*)(intptr_t)id)) break;
        pthread_detach(thread);
        helpers++;
      }
      tl_pool_size(helpers);
      __atomic_store_n(&started, 1, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&starting);
  }
  return tl_pool_workers();
}
