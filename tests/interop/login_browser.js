// Two people, two sites, one Chromium: JSON on the command line `{executable, proxy, spki, sites}`. Prints one line of JSON.
'use strict';

const { chromium } = require('playwright-core');

const { executable, proxy, spki, sites } = JSON.parse(process.argv[2]);

async function main() {
  const browser = await chromium.launch({
    executablePath: executable,
    args: ['--no-sandbox', `--ignore-certificate-errors-spki-list=${spki}`, '--proxy-bypass-list=<-loopback>'],
    proxy: { server: proxy },
  });
  const context = await browser.newContext();
  const referrers = [];
  context.on('request', (request) => {
    if (request.url().startsWith('https://third.example.com/')) referrers.push(request.headers().referer ?? '');
  });
  const visit = async (site) => {
    const page = await context.newPage();
    const crossed = [];
    page.on('response', (response) => crossed.push([response.status(), new URL(response.url()).host]));
    await page.goto(`https://${site}.example.com/login`);
    return { site, text: (await page.textContent('body')).trim(), crossed, frames: page.frames().length };
  };
  const together = await Promise.all(sites.map(visit));
  const page = await context.newPage();
  await page.goto('https://login.example.com/login/' + sites[0]);
  const stopped = { text: await page.textContent('body'), color: await page.evaluate(() => getComputedStyle(document.body).maxWidth) };
  await browser.close();
  console.log(JSON.stringify({ together, referrers, stopped }));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
