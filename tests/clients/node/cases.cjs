// Cases of a script: they run beside each other and report as JSON lines.
"use strict";

const DEADLINE_MS = 45000;

async function until(what, condition) {
  const give_up = Date.now() + DEADLINE_MS;
  for (;;) {
    const value = await condition();
    if (value) return value;
    if (Date.now() > give_up) throw new Error(`never: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

const results = [];

// Runs a case beside the others; a failure is told and ends nothing else.
function check(name, run) {
  if (process.env.CASE && !name.includes(process.env.CASE)) return;
  results.push(
    run().then(
      () => console.log(JSON.stringify({ case: name, ok: true })),
      (error) => {
        process.exitCode = 1;
        console.log(JSON.stringify({ case: name, ok: false, error: error.stack ?? JSON.stringify(error) }));
      },
    ),
  );
}

// Waits for all cases.
function ended() {
  return Promise.all(results);
}

module.exports = { DEADLINE_MS, check, ended, until };
