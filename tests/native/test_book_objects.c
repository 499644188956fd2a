/*
 * The book of a client whose connection operates on objects by itself: when it may, and what its
 * completions mean.
 */
#include "book_world.h"

#include <stdio.h>

enum { OBJECT = 8, OTHER = 9, KEY = 0x1234, SLOT = 4 };

static struct dlk_book book_with_key(void)
{
    struct dlk_book book = new_book(DLK_KIND_ATOMIC);
    book.one_sided = true;
    assert(dlk_book_add_object(&book, OBJECT, SLOT) == S(SUCCESS));
    assert(dlk_book_object_key(&book, OBJECT, KEY) == S(SUCCESS));
    return book;
}

static struct dlk_call operation(uint32_t verb, uint64_t operand, uint64_t swap)
{
    struct dlk_call call = {.verb = verb, .lock_id = OBJECT, .operand = operand, .swap = swap};
    dlk_book_prepare(&call);
    return call;
}

static struct dlk_reply completion(const struct dlk_request *request, uint32_t result)
{
    struct dlk_reply answer = answer_to(request, result);
    answer.value = 77;
    answer.reserved = DLK_REPLY_ONE_SIDED;
    return answer;
}

static uint64_t key_asked(struct dlk_book *book, uint64_t now_ns)
{
    struct dlk_call call = operation(DLK_VERB_FETCH_ADD, 5, 0);
    uint64_t reserved = begin(book, &call, now_ns).reserved;
    assert(dlk_book_lose(book, call.slot, false, now_ns) == &call);
    return reserved;
}

/* What has no key, or whose connection cannot use one, is asked of the server. */
static void test_who_has_a_key(void)
{
    struct dlk_book book = book_with_key();
    assert(key_asked(&book, T0) == (DLK_BOOK_KEYED | KEY));
    assert(dlk_book_object_key(&book, OBJECT, KEY + 1) == S(SUCCESS));
    assert(key_asked(&book, T0) == (DLK_BOOK_KEYED | (KEY + 1)));
    assert(dlk_book_object_key(&book, OBJECT, 0) == S(SUCCESS));
    assert(key_asked(&book, T0) == 0);
    assert(dlk_book_object_key(&book, OTHER, KEY) == S(OBJECT_NOT_GET));
    assert(dlk_book_object_key(&book, OBJECT, KEY) == S(SUCCESS));
    book.one_sided = false;
    assert(key_asked(&book, T0) == 0);
    dlk_book_free(&book);
}

/* Whoever drops an object, or adds it anew, has no key of it any more. */
static void test_key_goes_with_its_object(void)
{
    struct dlk_book book = book_with_key();
    assert(dlk_book_add_object(&book, OBJECT, SLOT) == S(SUCCESS));
    assert(key_asked(&book, T0) == 0);
    assert(dlk_book_object_key(&book, OBJECT, KEY) == S(SUCCESS));
    assert(dlk_book_drop_object(&book, OBJECT) == S(SUCCESS));
    assert(dlk_book_add_object(&book, OBJECT, SLOT) == S(SUCCESS));
    assert(key_asked(&book, T0) == 0);
    dlk_book_free(&book);
}

/* Another primary may have given the same key to another number. */
static void test_key_of_an_earlier_epoch(void)
{
    struct dlk_book book = book_with_key();
    struct dlk_link again = link_of(EPOCH);
    struct dlk_link successor = link_of(EPOCH + 1);
    dlk_book_attach(&book, &again, T0, T0);
    assert(key_asked(&book, T0) == (DLK_BOOK_KEYED | KEY));
    dlk_book_attach(&book, &successor, T0, T0);
    assert(key_asked(&book, T0) == 0);
    dlk_book_free(&book);
}

static void test_only_while_the_session_lives(void)
{
    struct dlk_book book = book_with_key();
    uint64_t end_ns = book.session_until_ns;
    assert(key_asked(&book, end_ns - 1) == (DLK_BOOK_KEYED | KEY));
    assert(key_asked(&book, end_ns) == 0);
    dlk_book_renew(&book, end_ns, R(DONE), end_ns);
    assert(key_asked(&book, end_ns) == (DLK_BOOK_KEYED | KEY));
    dlk_book_renew(&book, end_ns, R(REMOVED), end_ns);
    assert(key_asked(&book, end_ns) == 0);
    dlk_book_free(&book);
}

static void test_completion_answers(void)
{
    struct dlk_book book = book_with_key();
    struct dlk_call add = operation(DLK_VERB_FETCH_ADD, 5, 0);
    struct dlk_request request = begin(&book, &add, T0);
    assert(request.op == DLK_OP_FETCH_ADD && request.value == 5 && request.slot == SLOT);
    struct dlk_reply answer = completion(&request, R(DONE));
    assert(dlk_book_reply(&book, &answer, T0 + MS) == &add);
    assert(add.status == S(SUCCESS) && add.value == 77);
    struct dlk_call swap = operation(DLK_VERB_COMPARE_SWAP, 70, 71);
    request = begin(&book, &swap, T0);
    assert(request.token == 70 && request.value == 71);
    answer = completion(&request, R(CAS_FAILED));
    assert(dlk_book_reply(&book, &answer, T0 + MS) == &swap);
    assert(swap.status == S(OBJECT_CAS_FAILED) && swap.value == 77);
    dlk_book_free(&book);
}

/* Neither its operation nor any other request is a proof that the session lives, if the flag says
 * that it is only a completion; not even if it came from a server. */
static void test_completion_renews_nothing(void)
{
    struct dlk_book book = book_with_key();
    uint64_t end_ns = book.session_until_ns;
    struct dlk_call read = operation(DLK_VERB_READ, 0, 0);
    struct dlk_request request = begin(&book, &read, T0 + 50 * MS);
    struct dlk_reply answer = completion(&request, R(DONE));
    assert(dlk_book_reply(&book, &answer, T0 + 51 * MS) == &read && read.status == S(SUCCESS));
    assert(book.session_until_ns == end_ns && book.renewed_ns == T0);
    assert(book.operated_ns == T0 + 51 * MS);
    struct dlk_call try = ask_for(TRY, 1000, 0);
    request = begin(&book, &try, T0 + 60 * MS);
    answer = completion(&request, R(BUSY));
    assert(dlk_book_reply(&book, &answer, T0 + 61 * MS) == &try && try.status == S(FAIL));
    assert(book.session_until_ns == end_ns);
    struct dlk_call again = ask_for(TRY, 1000, 0);
    request = begin(&book, &again, T0 + 70 * MS);
    assert(reply(&book, &request, R(BUSY), T0 + 71 * MS) == &again);
    assert(book.renewed_ns == T0 + 70 * MS && book.session_until_ns > end_ns);
    dlk_book_free(&book);
}

/* What is completed when the session could have ended may have met the memory of a primary that is
 * none any more: nobody knows the outcome. */
static void test_completion_after_the_session(void)
{
    struct dlk_book book = book_with_key();
    uint64_t end_ns = book.session_until_ns;
    struct dlk_call late = operation(DLK_VERB_FETCH_ADD, 1, 0);
    struct dlk_request request = begin(&book, &late, end_ns - 1);
    struct dlk_reply answer = completion(&request, R(DONE));
    assert(dlk_book_reply(&book, &answer, end_ns) == &late);
    assert(late.status == S(BAD_RESPONSE) && late.value == 0);
    struct dlk_call asked = operation(DLK_VERB_FETCH_ADD, 1, 0);
    request = begin(&book, &asked, end_ns); /* of the server, which may answer when it likes */
    assert(reply(&book, &request, R(DONE), end_ns + MS) == &asked && asked.status == S(SUCCESS));
    dlk_book_free(&book);
}

/* The object is gone. Its key is not used again, whoever tells it, until there is a new epoch. */
static void test_refused_key(void)
{
    struct dlk_book book = book_with_key();
    struct dlk_call add = operation(DLK_VERB_FETCH_ADD, 1, 0);
    struct dlk_request request = begin(&book, &add, T0);
    struct dlk_reply answer = completion(&request, R(NO_OBJECT));
    assert(dlk_book_reply(&book, &answer, T0 + MS) == &add);
    assert(add.status == S(OBJECT_NOT_GET));
    assert(key_asked(&book, T0) == 0);
    assert(dlk_book_object_key(&book, OBJECT, KEY) == S(SUCCESS));
    assert(key_asked(&book, T0) == 0);
    assert(dlk_book_drop_object(&book, OBJECT) == S(SUCCESS));
    assert(dlk_book_add_object(&book, OBJECT, SLOT) == S(SUCCESS));
    assert(dlk_book_object_key(&book, OBJECT, KEY) == S(SUCCESS));
    assert(key_asked(&book, T0) == 0);
    struct dlk_link successor = link_of(EPOCH + 1);
    dlk_book_attach(&book, &successor, T0, T0);
    assert(dlk_book_object_key(&book, OBJECT, KEY) == S(SUCCESS));
    assert(key_asked(&book, T0) == (DLK_BOOK_KEYED | KEY));
    dlk_book_free(&book);
}

/* A lost one is never repeated: nothing is owed, nothing is asked again. */
static void test_lost_is_unknown(void)
{
    struct dlk_book book = book_with_key();
    struct dlk_call add = operation(DLK_VERB_FETCH_ADD, 1, 0);
    begin(&book, &add, T0);
    assert(dlk_book_operates(&book, OBJECT) && !dlk_book_operates(&book, OTHER));
    assert(dlk_book_disconnect(&book, add.slot, false, T0 + MS) == &add);
    assert(add.status == S(BAD_RESPONSE) && !dlk_book_operates(&book, OBJECT));
    assert(book.debts == 0 && next_debt(&book) == NULL);
    dlk_book_free(&book);
}

int main(void)
{
    test_who_has_a_key();
    test_key_goes_with_its_object();
    test_key_of_an_earlier_epoch();
    test_only_while_the_session_lives();
    test_completion_answers();
    test_completion_renews_nothing();
    test_completion_after_the_session();
    test_refused_key();
    test_lost_is_unknown();
    printf("keys, completions, their session and their end\n");
    return 0;
}
