// What was drawn before, in this browser's own database; the oldest runs go when there are too many.
const NAME = "fewstep", STORE = "runs";
const tabs = new BroadcastChannel("history");
export const LIMITS = { runs: 60, bytes: 48_000_000 };

let opened = null;

function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

async function act(mode, work) {
  const transaction = (await database()).transaction(STORE, mode);
  const request = work(transaction.objectStore(STORE));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request?.result);
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
}

// Newest first.
export async function runs() {
  return (await act("readonly", store => store.getAll())).sort((one, other) => other.id - one.id);
}

// Where the browser has no room for it, the oldest go first.
export async function keep(run) {
  for (;;) {
    try {
      await act("readwrite", store => store.put(run));
      break;
    } catch (error) {
      const oldest = (await runs()).at(-1);
      if (error?.name !== "QuotaExceededError" || !oldest) throw error;
      await forget(oldest.id);
    }
  }
  const surplus = overflow(await runs(), LIMITS);
  if (surplus.length) await act("readwrite", store => surplus.map(({ id }) => store.delete(id)).at(-1));
  tabs.postMessage(null);
}

export const forget = id => act("readwrite", store => store.delete(id));

export async function clear() {
  await act("readwrite", store => store.clear());
  tabs.postMessage(null);
}

// Told when another tab has added to the history or cleared it.
export const onChange = listener => tabs.addEventListener("message", listener);

// Those that do not fit any more; `all` is newest first, and the newest always stays.
export function overflow(all, limits) {
  let total = 0;
  return all.filter((run, index) => {
    total += sizeOf(run);
    return index > 0 && (index >= limits.runs || total > limits.bytes);
  });
}

function sizeOf(run) {
  return run.columns.flatMap(column => column.pictures).reduce((sum, picture) => sum + (picture?.blob.size ?? 0), 0);
}
