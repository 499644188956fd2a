/* The heap of heap.h. */
#include "heap.h"

#include <stdlib.h>

bool dlk_heap_init(struct dlk_heap *heap, uint32_t capacity)
{
    heap->items = calloc((size_t)capacity + 1, sizeof(*heap->items));
    heap->place = calloc((size_t)capacity + 1, sizeof(*heap->place));
    heap->count = 0;
    return heap->items != NULL && heap->place != NULL;
}

void dlk_heap_free(struct dlk_heap *heap)
{
    free(heap->items);
    free(heap->place);
}

static void put(struct dlk_heap *heap, uint32_t index, struct dlk_heap_item item)
{
    heap->items[index] = item;
    heap->place[item.id] = index + 1;
}

bool dlk_heap_grow(struct dlk_heap *heap, uint32_t wider)
{
    struct dlk_heap grown;
    if (!dlk_heap_init(&grown, wider)) {
        dlk_heap_free(&grown);
        return false;
    }
    for (uint32_t i = 0; i < heap->count; i++) {
        put(&grown, i, heap->items[i]);
    }
    grown.count = heap->count;
    dlk_heap_free(heap);
    *heap = grown;
    return true;
}

static void sift_up(struct dlk_heap *heap, uint32_t index, struct dlk_heap_item item)
{
    while (index > 0) {
        uint32_t parent = (index - 1) / 2;
        if (heap->items[parent].when_ns <= item.when_ns) {
            break;
        }
        put(heap, index, heap->items[parent]);
        index = parent;
    }
    put(heap, index, item);
}

static void sift_down(struct dlk_heap *heap, uint32_t index, struct dlk_heap_item item)
{
    for (;;) {
        uint32_t child = 2 * index + 1;
        if (child >= heap->count) {
            break;
        }
        if (child + 1 < heap->count
            && heap->items[child + 1].when_ns < heap->items[child].when_ns) {
            child++;
        }
        if (heap->items[child].when_ns >= item.when_ns) {
            break;
        }
        put(heap, index, heap->items[child]);
        index = child;
    }
    put(heap, index, item);
}

static void replace(struct dlk_heap *heap, uint32_t index, struct dlk_heap_item item)
{
    if (index > 0 && heap->items[(index - 1) / 2].when_ns > item.when_ns) {
        sift_up(heap, index, item);
    } else {
        sift_down(heap, index, item);
    }
}

void dlk_heap_set(struct dlk_heap *heap, uint32_t id, uint64_t when_ns)
{
    struct dlk_heap_item item = {.when_ns = when_ns, .id = id, .padding = 0};
    if (heap->place[id] != 0) {
        replace(heap, heap->place[id] - 1, item);
    } else {
        sift_up(heap, heap->count++, item);
    }
}

void dlk_heap_remove(struct dlk_heap *heap, uint32_t id)
{
    uint32_t place = heap->place[id];
    if (place == 0) {
        return;
    }
    heap->place[id] = 0;
    struct dlk_heap_item last = heap->items[--heap->count];
    if (last.id != id) {
        replace(heap, place - 1, last);
    }
}
