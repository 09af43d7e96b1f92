// Times and waiting.

export const sleep = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

// Seconds as 1:02.3.
export function clock(seconds) {
  const tenths = Math.floor(seconds * 10 + 1e-6);
  const rest = tenths % 600;
  return `${Math.floor(tenths / 600)}:${String(Math.floor(rest / 10)).padStart(2, "0")}.${rest % 10}`;
}
