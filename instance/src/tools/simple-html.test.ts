import TurndownService from 'turndown'
import { expect, it } from 'vitest'
import { htmlToMarkdown } from './markdown.ts'
import { simpleTree } from './simple-html.ts'

type Element = TurndownService.Node & { getAttribute(name: string): string | null }

/** Shows the tree: each element with the attributes that anybody reads. */
const show = (content: string, node: TurndownService.Node) => {
  const read = (name: string) => (node as Element).getAttribute(name)
  const attributes = ['style', 'href', 'alt', 'start', 'title', 'hidden'].map(name => `${name}=${read(name)}`)
  return `{${node.nodeName} ${attributes.join(' ')} ${JSON.stringify(content)}}`
}
const shape = new TurndownService({ blankReplacement: show, defaultReplacement: show })
shape.escape = text => text
shape.addRule('every', { filter: () => true, replacement: show })
const plain = new TurndownService()

/** Compares what is made of the tree of ours with what is made of the real parser's. @returns whether there was one of ours */
function sameAsParser(html: string): boolean {
  if (!simpleTree(html)) return false
  const tree = () => simpleTree(html) as unknown as TurndownService.Node
  expect(shape.turndown(tree()), html).toBe(shape.turndown(html))
  expect(plain.turndown(tree()), html).toBe(plain.turndown(html))
  // a comment is nothing in the end, but only the real parser reads it
  if (/[<&]/.test(html)) expect(htmlToMarkdown(html), html).toBe(htmlToMarkdown(`${html}<!---->`))
  return true
}

it.each([
  '<p>VPN is down.</p><p>Since <b>this morning</b>, I cannot <i>connect</i>.</p>',
  '<div>line one<br></div><div><br></div><div>line two&nbsp;<br /></div>',
  '<div style="font-family: Arial"><span class="x">Hello</span> <span>world</span></div>',
  'plain &amp; simple &lt;b&gt; AT & T &#39;quoted&#39; &#xe4;'.replace('&#xe4;', '&#228;'),
  '<ul><li>one</li><li>two<ul><li>in two</li></ul></li></ul><ol start="3"><li><p>three</p></li><li>four</li></ol>',
  '<p> <b> spaced </b><i>,</i> <em></em><strong> </strong>end </p>\r\n\t<p>\n</p>',
  '<a href="https://a.example/x">here</a> <a href="mailto:a@b.example">a@b.example</a> <img src="cid:1" alt="a shot"/>',
  '<div style="display:none">hidden</div><p hidden="">hidden</p><span style="color:#fff">hidden</span>seen',
  '<blockquote><div>quoted<br>twice</div></blockquote>after',
  '<p class="a" class="b" style="color:white" style="">first counts</p>shown',
  '<b><div>a block <i>in bold</i></div></b> \ud83d\udc69\u200d\ud83d\udcbb \u2003 caf\u00e9 \ud800',
  '',
  ' \n ',
])('common HTML reads the same without a real parser: %j', html => {
  expect(sameAsParser(html)).toBe(true)
})

it.each([
  ['a tag that does not end', '<p>text<b'],
  ['an element that is not closed', '<div>text'],
  ['one closed too often', 'text</div>'],
  ['elements that overlap', '<b>one<i>two</b>three</i>'],
  ['a block in a paragraph', '<p>one<div>two</div></p>'],
  ['a block deep in a paragraph', '<p><span><ul></ul></span></p>'],
  ['a list item that closes another', '<ul><li>one<li>two</li></li></ul>'],
  ['a list item without a list', '<div><li>one</li></div>'],
  ['a link in a link', '<a href="x"><b><a href="y">z</a></b></a>'],
  ['capitals', '<P>text</P>'],
  ['a table', '<table><tr><td>x</td></tr></table>'],
  ['a script', '<script>x</script>'],
  ['a comment', 'a<!-- b -->c'],
  ['code', '<pre>\n\n x</pre><code>y</code>'],
  ['attributes without quotes', '<p hidden>x</p>'],
  ['attributes in other quotes', "<p style='display:none'>x</p>"],
  ['attributes with entities', '<p style="display&#58;none">x</p>'],
  ['attributes with a space around the sign', '<p style = "display:none">x</p>'],
  ['attributes behind a line break', '<p\nstyle="display:none">x</p>'],
  ['attributes at an end', '<p>x</p style="a">'],
  ['an element that closes itself', '<div/>x'],
  ['rare entities', '&copy; 2026'],
  ['an entity without its end', 'a &amp b &lt'],
  ['an ampersand inside of a word', 'a&b'],
  ['a number of an entity that means another', '&#150; &#00; &#13;'],
  ['a character that is dropped', 'a\0b'],
  ['a character that is dropped, in an attribute', '<p style="a\0b">x</p>'],
  ['very deep nesting', `${'<div>'.repeat(61)}x${'</div>'.repeat(61)}`],
  ['a long text', 'x'.repeat(20_001)],
])('%s is left to the real parser', (_what, html) => {
  expect(simpleTree(html)).toBeUndefined()
})

/** Mulberry32: the same numbers in each run. */
function numbers(seed: number): (below: number) => number {
  let state = seed
  return below => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below
  }
}

const texts = [
  ...[
    'word',
    ' ',
    '  ',
    '\n',
    ' a ',
    '\t\r\n',
    '&nbsp;',
    '\u00a0 ',
    '&amp;',
    '&lt;p&gt;',
    '*',
    '1. ',
    '# ',
    '> ',
    '_x_',
  ],
  ...[
    'caf\u00e9',
    '\u2003',
    '\f',
    '\u200b',
    '&#32;',
    '&#160;',
    ' & ',
    '&',
    '"',
    "'",
    '=',
    '/',
    '-',
    ']',
    '\u0001',
    '\ufeff',
  ],
]
const attributes = [
  ...['', '', '', ' style="color:red"', ' class="x"', ' style="display:none"', ' href="https://a.example/"'],
  ...[' href="javascript:x"', ' alt="  a b "', ' start="7"', ' title="t"', ' aria-hidden="true"', ' hidden=""'],
]
const names = [
  'div',
  'div',
  'p',
  'p',
  'blockquote',
  'ul',
  'ol',
  'li',
  'li',
  'span',
  'font',
  'b',
  'strong',
  'i',
  'em',
  'u',
  'a',
]

function randomHtml(below: (limit: number) => number, depth = 0, within = ''): string {
  const pick = (from: string[]) => from[below(from.length)] as string
  let html = ''
  for (let parts = below(5); parts >= 0; parts--) {
    const kind = below(10)
    if (kind < 4 || depth > 5) html += pick(texts)
    else if (kind < 5)
      html += pick(['<br>', '<br/>', '<br />', `<img${pick(attributes)}>`, `<img${pick(attributes)} />`])
    else {
      const name = within === 'ul' || within === 'ol' ? 'li' : pick(names)
      html += `<${name}${pick(attributes)}${pick(attributes)}>${randomHtml(below, depth + 1, name)}</${name}>`
    }
  }
  return html
}

it('whatever simple HTML there is, its tree is that of the real parser, also after it was damaged', () => {
  const below = numbers(20_261_122)
  let understood = 0
  for (let round = 0; round < 6_000; round++) {
    let html = randomHtml(below)
    if (round % 3 === 0) {
      // something is missing, or said twice
      const [from, to] = [below(html.length + 1), below(6)]
      html = html.slice(0, from) + html.slice(from + to)
    } else if (round % 3 === 1) {
      const [from, to, at] = [below(html.length + 1), below(12), below(html.length + 1)]
      html = html.slice(0, at) + html.slice(from, from + to) + html.slice(at)
    }
    if (sameAsParser(html)) understood++
  }
  expect(understood).toBeGreaterThan(1_000)
}, 60_000)
