/** Texts in the order a person expects: case does not matter, numbers count as numbers. */
export const compareTexts = new Intl.Collator('en', { sensitivity: 'base', numeric: true }).compare
