// Headless Chromium for a test: Debian's, driven by playwright-core.
import { chromium } from 'playwright-core';

// What Chromium asks the network for by itself is left off.
const ARGS = ['--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking'];
ARGS.push('--disable-component-update', '--disable-sync');

/** How long a browser may take to start, in ms: on a new machine it is read from the disk first. */
export const START = 180_000;

/** What `use` makes of a browser that is closed afterwards. */
export async function browser(use) {
  // As root there is no sandbox to be had.
  const chromiumSandbox = process.getuid() !== 0;
  const started = await chromium.launch({ executablePath: '/usr/bin/chromium', chromiumSandbox, args: ARGS, timeout: START });
  try {
    return await use(started);
  } finally {
    await started.close();
  }
}
