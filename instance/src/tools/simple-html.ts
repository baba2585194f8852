/**
 * The HTML that most tickets consist of, as the few properties of a DOM that turndown reads. Building a whole document with
 * the rules of browsers costs more than everything else a small answer needs; here only what needs none of these
 * rules is understood, so that the tree is the same.
 */

/** May hold blocks. A paragraph may not, and ends at one; that is left to the real parser. */
const blocks = new Set(['div', 'p', 'blockquote', 'ul', 'ol', 'li'])
const inlines = new Set(['span', 'font', 'b', 'strong', 'i', 'em', 'u', 'a'])
const voids = new Set(['br', 'img'])
const entities: Record<string, string> = { amp: '&', lt: '<', gt: '>', quot: '"', apos: "'", nbsp: '\u00a0' }
/** Beyond these the short ways of this file would be the long ones. */
const deepest = 60
const longest = 20_000
/** turndown asks each empty element about thirty times for what is below it, and each entry of a list for its siblings */
const mostWork = 3_000
const mostSiblings = 400

/** A tag with attributes in double quotes, a text, or a reference to a character: one of them at a time. */
const piece =
  /<(\/?)([a-z]{1,10})((?: [a-z][a-z0-9-]*="[^"&\0\r]*")*)( ?\/)?>|([^<&\0]+)|&(?:(amp|lt|gt|quot|apos|nbsp)|#(\d{2,3}));|(&)(?=[ \n])/y

/** @returns what `turndown` converts as it would the same text; undefined: only the real parser knows */
export function simpleTree(html: string): SimpleElement | undefined {
  if (html.length > longest) return undefined
  const root = new SimpleElement('x-turndown', '')
  let open = root
  let depth = 0
  let work = 0
  let inParagraph = false
  let inLink = false
  piece.lastIndex = 0
  while (piece.lastIndex < html.length) {
    const match = piece.exec(html)
    if (!match) return undefined
    const [, slash, name, attributes = '', selfClosing, text, entity, number, ampersand] = match
    work += name === undefined ? 0 : depth + 1
    if (work > mostWork || open.childNodes.length > mostSiblings) return undefined
    if (name === undefined) {
      const shown = text ?? ampersand ?? (entity ? entities[entity] : character(Number(number)))
      if (shown === undefined) return undefined
      open.addText(shown)
    } else if (slash) {
      if (open.name !== name || attributes !== '' || selfClosing || !open.parentNode) return undefined
      if (name === 'p') inParagraph = false
      if (name === 'a') inLink = false
      open = open.parentNode
      depth--
    } else if (voids.has(name)) {
      open.add(new SimpleElement(name, attributes))
    } else {
      const isBlock = blocks.has(name)
      if (selfClosing || !(isBlock || inlines.has(name)) || ++depth > deepest) return undefined
      if (isBlock && inParagraph) return undefined
      if (name === 'li' && open.name !== 'ul' && open.name !== 'ol') return undefined
      if (name === 'a' && inLink) return undefined
      if (name === 'p') inParagraph = true
      if (name === 'a') inLink = true
      const element = new SimpleElement(name, attributes)
      open.add(element)
      open = element
    }
  }
  return open === root ? root : undefined
}

/** Of the characters that stand for themselves as numbers; the others have rules. */
function character(code: number): string | undefined {
  return (code >= 32 && code < 127) || (code >= 160 && code < 256) ? String.fromCharCode(code) : undefined
}

class SimpleNode {
  parentNode: SimpleElement | null = null
  previousSibling: SimpleNode | null = null
  nextSibling: SimpleNode | null = null
}

class SimpleText extends SimpleNode {
  readonly nodeType = 3
  readonly nodeName = '#text'
  data: string
  constructor(data: string) {
    super()
    this.data = data
  }
  get nodeValue(): string {
    return this.data
  }
  get textContent(): string {
    return this.data
  }
}

export class SimpleElement extends SimpleNode {
  readonly nodeType = 1
  readonly nodeName: string
  /** in small letters */
  readonly name: string
  readonly childNodes: (SimpleElement | SimpleText)[] = []
  readonly #attributes: string

  constructor(name: string, attributes: string) {
    super()
    this.name = name
    this.nodeName = name.toUpperCase()
    this.#attributes = attributes
  }

  add(node: SimpleElement | SimpleText): void {
    const last = this.childNodes.at(-1)
    node.parentNode = this
    if (last) {
      node.previousSibling = last
      last.nextSibling = node
    }
    this.childNodes.push(node)
  }

  addText(text: string): void {
    const last = this.childNodes.at(-1)
    if (last instanceof SimpleText) last.data += text
    else this.add(new SimpleText(text))
  }

  removeChild(node: SimpleElement | SimpleText): void {
    const { previousSibling, nextSibling } = node
    if (previousSibling) previousSibling.nextSibling = nextSibling
    if (nextSibling) nextSibling.previousSibling = previousSibling
    this.childNodes.splice(this.childNodes.indexOf(node), 1)
  }

  /** turndown changes what it converts, and would rather have a copy; nobody else needs this one */
  cloneNode(): this {
    return this
  }

  get firstChild(): SimpleElement | SimpleText | null {
    return this.childNodes[0] ?? null
  }
  get children(): SimpleElement[] {
    return this.childNodes.filter(node => node instanceof SimpleElement)
  }
  get lastElementChild(): SimpleElement | null {
    return this.children.at(-1) ?? null
  }
  get textContent(): string {
    let text = ''
    for (const node of this.childNodes) text += node.textContent
    return text
  }

  /** @param name - in capitals, as turndown asks */
  getElementsByTagName(name: string): SimpleElement[] {
    const found: SimpleElement[] = []
    this.#gather(name, found)
    return found
  }
  #gather(name: string, found: SimpleElement[]): void {
    for (const child of this.childNodes)
      if (child instanceof SimpleElement) {
        if (child.nodeName === name) found.push(child)
        child.#gather(name, found)
      }
  }

  hasAttribute(name: string): boolean {
    return this.getAttribute(name) !== null
  }
  /** Of an attribute that is there twice the first one counts. */
  getAttribute(name: string): string | null {
    if (this.#attributes === '') return null
    for (const [, given, value] of this.#attributes.matchAll(/ ([a-z0-9-]+)="([^"]*)"/g))
      if (given === name) return value as string
    return null
  }
}
