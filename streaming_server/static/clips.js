// The clips of this browser, in IndexedDB.

const DATABASE = "player";
const STORE = "clips";
const MAX_CLIPS = 50;
const MAX_BYTES = 100_000_000;

// The clips without their audio, the newest first: {id, created, text, voice, method, seconds, words, size}.
export async function list() {
  const clips = await run("readonly", (store) => store.getAll());
  return clips.map(({ file, ...clip }) => ({ ...clip, size: file.size })).sort((a, b) => b.created - a.created);
}

// Keeps a clip {created, text, voice, method, seconds, words, file}, in place of the oldest ones beyond the limits.
export async function add(clip) {
  await run("readwrite", (store) => store.add(clip));
  let size = 0;
  const old = (await list()).filter((each, i) => (size += each.size) > MAX_BYTES || i >= MAX_CLIPS);
  for (const { id } of old) await remove(id);
}

export async function file(id) {
  return (await run("readonly", (store) => store.get(id)))?.file ?? null;
}

export const remove = (id) => run("readwrite", (store) => store.delete(id));
export const clear = () => run("readwrite", (store) => store.clear());

async function run(mode, action) {
  const database = await open();
  try {
    return await result(action(database.transaction(STORE, mode).objectStore(STORE)));
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
