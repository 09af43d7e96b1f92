// The clips of this browser, in IndexedDB.

const DATABASE = "player";
const STORE = "clips";
const MAX_CLIPS = 50;
const MAX_BYTES = 100_000_000;

// The clips without their audio, the newest first: {id, created, text, voice, method, seconds, words, size}.
export async function list() {
  return listed(await run("readonly", (store) => store.getAll()));
}

function listed(clips) {
  return clips.map(({ file, ...clip }) => ({ ...clip, size: file.size })).sort((a, b) => b.created - a.created);
}

// Keeps a clip {created, text, voice, method, seconds, words, file}, in place of the oldest ones beyond the limits.
//
// Throws a QuotaExceededError if the clip does not fit. The old ones are removed in the same transaction, which restores them
// if the clip cannot be stored.
export async function add(clip) {
  let { size } = clip.file;
  if (size > MAX_BYTES) throw new DOMException("the clip is too large", "QuotaExceededError");
  await run("readwrite", (store) => {
    const request = store.getAll();
    request.onsuccess = () => {
      const old = listed(request.result).filter((each, i) => (size += each.size) > MAX_BYTES || i >= MAX_CLIPS - 1);
      for (const { id } of old) store.delete(id);
      store.add(clip);
    };
    return request;
  });
}

export async function file(id) {
  return (await run("readonly", (store) => store.get(id)))?.file ?? null;
}

export const remove = (id) => run("readwrite", (store) => store.delete(id));
export const clear = () => run("readwrite", (store) => store.clear());

async function run(mode, action) {
  const database = await open();
  try {
    const transaction = database.transaction(STORE, mode);
    // A full storage may end the transaction after its request has succeeded.
    const ended = new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      transaction.onabort = () => reject(transaction.error);
    });
    const request = action(transaction.objectStore(STORE));
    await ended;
    return request.result;
  } finally {
    database.close();
  }
}

function open() {
  const request = indexedDB.open(DATABASE, 1);
  request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id", autoIncrement: true });
  return result(request);
}

function result(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
